// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group persistence: msync, fsync and their relatives return success, keep the data and notice the
 * next store. That the data is durable then, only a power cut shows: see records.c for its tools.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

static void sync_mapping(uint8_t *p, size_t len, int flags)
{
	CHECK(!msync(p, len, flags), "msync of %zu bytes, flags 0x%x: %m", len, flags);
}

static void msync_rounds(int flags)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);
	unsigned int round;

	for (round = 2; round < 12; round++) {
		fill(p, len, round, 0);
		sync_mapping(p, len, flags);
		verify_file(fd, len, round, 0, "the file after msync");
		verify(p, len, round, 0, "the mapping after msync");
	}
}

void point_msync_sync(void)
{
	msync_rounds(MS_SYNC);
}

void point_msync_async(void)
{
	msync_rounds(MS_ASYNC);
}

void point_msync_invalidate(void)
{
	msync_rounds(MS_SYNC | MS_INVALIDATE);
}

/* More than one leaf of the tree that holds the dirty pages (64), and more than 2 MiB. */
void point_msync_many_pages(void)
{
	const size_t len = 640 * page;
	int fd = create_hole("file", len);
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 1, 0);
	sync_mapping(p, len, MS_SYNC);
	verify_file(fd, len, 1, 0, "the file");
}

void point_msync_part(void)
{
	const size_t len = 16 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 2, 0);
	sync_mapping(p + 3 * page, 2 * page, MS_SYNC);
	sync_mapping(p + 9 * page, 100, MS_SYNC);	/* a length need not be whole pages */
	sync_mapping(p, 0, MS_SYNC);
	fill(p + 4 * page, 6 * page, 3, 4 * page);
	verify_file(fd, 4 * page, 2, 0, "the pages before");
	verify_file(fd, 6 * page, 3, 4 * page, "pages synced, or not, and stored again");
	verify_file(fd, 6 * page, 2, 10 * page, "the pages behind");
}

void point_msync_errors(void)
{
	int fd = create_filled("file", 3 * page, 1);
	uint8_t *p = map_shared(fd, 3 * page);

	fill(p, 3 * page, 2, 0);
	CHECK_ERRNO(msync(p + 1, page, MS_SYNC), EINVAL);
	CHECK_ERRNO(msync(p, page, MS_SYNC | MS_ASYNC), EINVAL);
	CHECK(!munmap(p + page, page), "munmap: %m");
	CHECK_ERRNO(msync(p, 3 * page, MS_SYNC), ENOMEM);
	verify_file(fd, 3 * page, 2, 0, "the file");
}

/*
 * The kernel learns of a store to a clean page by the fault that it takes: if msync leaves pages
 * writable, the next msync has nothing to flush, and says that all is well.
 */
static void expect_refault(bool whole_file)
{
	enum { PAGES = 64 };
	int fd = create_filled("file", PAGES * page, 1);
	uint8_t *p = map_shared(fd, PAGES * page);
	unsigned int round;
	size_t i;
	long faults;

	fill(p, PAGES * page, 2, 0);
	for (round = 3; round < 6; round++) {
		if (whole_file)
			CHECK(!fsync(fd), "fsync: %m");
		else
			sync_mapping(p, PAGES * page, MS_SYNC);
		faults = minor_faults();
		for (i = 0; i < PAGES; i++)
			*(volatile uint8_t *)(p + i * page) = round;
		faults = minor_faults() - faults;
		CHECK(faults >= PAGES, "%ld faults on storing to %d pages that were just synced",
		      faults, PAGES);
	}
	for (i = 0; i < PAGES; i++) {
		uint8_t seen;

		get(fd, &seen, 1, i * page);
		CHECK(seen == 5, "page %zu of the file holds %u, stored last: 5", i, seen);
	}
}

void point_msync_refault(void)
{
	expect_refault(false);
}

void point_fsync_refault(void)
{
	expect_refault(true);
}

/* The write protection must reach every mapping of the page, in every process. */
static void store_in_child(void *arg)
{
	uint8_t *p = arg;
	long faults;

	CHECK(!msync(p, page, MS_SYNC), "msync: %m");
	*(volatile uint8_t *)p = 1;
	CHECK(!msync(p, page, MS_SYNC), "msync: %m");
	faults = minor_faults();
	*(volatile uint8_t *)p = 2;
	CHECK(minor_faults() > faults, "the child's store after msync took no fault");
}

void point_msync_refault_elsewhere(void)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_shared(fd, page), *q = map_shared(fd, page);
	long faults;

	p[0] = 8;
	q[0] = 9;
	sync_mapping(p, page, MS_SYNC);
	faults = minor_faults();
	*(volatile uint8_t *)q = 10;
	CHECK(minor_faults() > faults,
	      "a store by another mapping than the one that was synced took no fault");
	join(start(store_in_child, p));
	faults = minor_faults();
	*(volatile uint8_t *)p = 11;
	CHECK(minor_faults() > faults, "a store after another process' msync took no fault");
	CHECK(q[0] == 11, "the two mappings differ");
}

static void store_one_page(void *arg)
{
	uint8_t *p = arg;

	fill(p + page, page, 3, page);
}

void point_msync_for_others(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	fill(p, page, 3, 0);
	join(start(store_one_page, p));
	sync_mapping(p, 4 * page, MS_SYNC);
	verify_file(fd, 2 * page, 3, 0, "pages stored by this process and by one that is gone");
}

void point_fsync_mapping(void)
{
	const size_t len = 64 * page;
	int fd = create_hole("file", len);
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 1, 0);
	CHECK(!fsync(fd), "fsync: %m");
	verify_file(fd, len, 1, 0, "the file after fsync");
	fill(p, len, 2, 0);
	CHECK(!fdatasync(fd), "fdatasync: %m");
	verify_file(fd, len, 2, 0, "the file after fdatasync");
	fill(p, len, 3, 0);
	CHECK(!syncfs(fd), "syncfs: %m");
	verify_file(fd, len, 3, 0, "the file after syncfs");
	fill(p, len, 4, 0);
	CHECK(!sync_file_range(fd, page, 4 * page, SYNC_FILE_RANGE_WAIT_BEFORE |
			       SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER),
	      "sync_file_range: %m");
	verify_file(fd, len, 4, 0, "the file after sync_file_range");
}

void point_fsync_after_unmap(void)
{
	const size_t len = 64 * page;
	int fd = create_hole("file", len);
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 1, 0);
	CHECK(!munmap(p, len), "munmap: %m");
	CHECK(!fsync(fd), "fsync: %m");
	verify_file(fd, len, 1, 0, "the file");
}

void point_fsync_scattered(void)
{
	enum { STEP = 37, COUNT = 150 };
	int fd = create_hole("file", STEP * COUNT * page);
	uint8_t *p = map_shared(fd, STEP * COUNT * page);
	size_t i;

	for (i = 0; i < COUNT; i++)
		fill(p + i * STEP * page + i, 64, i, 0);
	CHECK(!fsync(fd), "fsync: %m");
	for (i = 0; i < COUNT; i++) {
		uint8_t data[64];

		get(fd, data, sizeof(data), i * STEP * page + i);
		verify(data, sizeof(data), i, 0, "a scattered page");
		verify_zero(p + (i * STEP + 1) * page, page, "the hole behind it");
	}
}

void point_sync_writes(void)
{
	int fd = create_filled("file", 4 * page, 1), sync, datasync;
	uint8_t *p = map_shared(fd, 4 * page), data[5000];

	sync = open(in_dir(point_dir, "file"), O_WRONLY | O_SYNC);
	datasync = open(in_dir(point_dir, "file"), O_WRONLY | O_DSYNC);
	CHECK(sync >= 0 && datasync >= 0, "open: %m");
	fill(p, 4 * page, 2, 0);
	fill(data, sizeof(data), 3, 0);
	put(sync, data, sizeof(data), 10);
	verify(p + 10, sizeof(data), 3, 0, "loads after an O_SYNC write");
	fill(data, sizeof(data), 4, 0);
	put(datasync, data, sizeof(data), 6000);
	verify(p + 6000, sizeof(data), 4, 0, "loads after an O_DSYNC write");
	verify(p, 10, 2, 0, "the bytes before");
}

/* Under the same name: the inode leaves memory with all that was remembered of dirty pages. */
void point_drop_caches(void)
{
	const size_t len = 32 * page;
	int fd = create_hole("file", len), drop;
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 1, 0);
	CHECK(!munmap(p, len) && !close(fd), "munmap or close: %m");
	drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
	CHECK(drop >= 0, "/proc/sys/vm/drop_caches: %m");
	sync();
	CHECK(write(drop, "3", 1) == 1, "drop_caches: %m");
	fd = open(in_dir(point_dir, "file"), O_RDWR);
	CHECK(fd >= 0, "open: %m");
	verify_file(fd, len, 1, 0, "the file after the caches were dropped");
	p = map_shared(fd, len);
	verify(p, len, 1, 0, "a new mapping after the caches were dropped");
	fill(p, len, 2, 0);
	CHECK(write(drop, "3", 1) == 1, "drop_caches: %m");
	verify(p, len, 2, 0, "a dirty mapping after the caches were dropped");
}

#define RECORDS 60

static void expect_records(const char *path, uint32_t valid, uint32_t torn, uint32_t first_bad)
{
	struct record_report r;

	CHECK(!records_check(path, &r), "the checker cannot read %s", path);
	CHECK(r.highest == RECORDS && r.valid == valid && r.torn == torn &&
	      r.missing == RECORDS - valid && r.first_bad == first_bad,
	      "highest %u valid %u torn %u missing %u first-bad %u, expected %u %u %u %u %u",
	      r.highest, r.valid, r.torn, r.missing, r.first_bad, RECORDS, valid, torn,
	      RECORDS - valid, first_bad);
}

static void records_roundtrip(enum record_sync how)
{
	const char *path = in_dir(point_dir, "records");

	CHECK(!records_write(path, RECORDS, how, false), "the writer failed");
	expect_records(path, RECORDS, 0, RECORDS + 1);
}

void point_records_by_msync(void)
{
	records_roundtrip(BY_MSYNC);
}

void point_records_by_fsync(void)
{
	records_roundtrip(BY_FSYNC);
}

/* A checker that finds nothing wrong with a broken file would prove nothing. */
void point_records_damage(void)
{
	const char *path = in_dir(point_dir, "records");
	const size_t size = record_size();
	uint8_t *record = calloc(2, size), *p;
	int fd;

	CHECK(record, "no memory");
	CHECK(!records_write(path, RECORDS, BY_MSYNC, false), "the writer failed");
	fd = open(path, O_RDWR);
	CHECK(fd >= 0, "open: %m");
	p = map_shared(fd, RECORDS * size);
	put(fd, record, size, 19 * size);	/* record 20 was never written */
	expect_records(path, RECORDS - 1, 0, 20);
	p[14 * size + 100] ^= 1;		/* one bit of record 15 */
	expect_records(path, RECORDS - 2, 1, 15);
	memset(p + 9 * size + 64, 0, 64);	/* one line of record 10 */
	expect_records(path, RECORDS - 3, 2, 10);
	get(fd, record, size, 0);
	put(fd, record, size, 4 * size);	/* record 1 in the place of record 5 */
	expect_records(path, RECORDS - 4, 3, 5);
}
