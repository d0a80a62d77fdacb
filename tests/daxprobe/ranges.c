// SPDX-License-Identifier: GPL-2.0-only
/* Group ranges: truncate, holes and fallocate under a live mapping. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

static void allocate(int fd, int mode, off_t off, off_t len, const char *what)
{
	CHECK(!fallocate(fd, mode, off, len), "%s: %m", what);
}

void point_truncate_shrink(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	verify(p, 4 * page, 1, 0, "loads before");
	resize(fd, 2 * page);
	check_signal(signal_of_load(p + 2 * page), SIGBUS, "a load behind the new end");
	check_signal(signal_of_store(p + 3 * page), SIGBUS, "a store behind the new end");
	verify(p, 2 * page, 1, 0, "what is left");
}

void point_truncate_grow(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	verify(p, 4 * page, 1, 0, "loads before");
	resize(fd, page);
	check_signal(signal_of_load(p + page), SIGBUS, "a load behind the end");
	resize(fd, 4 * page);
	verify_zero(p + page, 3 * page, "what was cut off, after growing again");
	verify(p, page, 1, 0, "what was kept");
	fill(p, 4 * page, 2, 0);
	verify_file(fd, 4 * page, 2, 0, "the file after stores to all of it");
}

void point_truncate_inside(void)
{
	int fd = create_filled("file", 2 * page, 1);
	uint8_t *p = map_shared(fd, 2 * page);
	uint8_t *data = aligned_buffer(2 * page);

	verify(p, 2 * page, 1, 0, "loads before");
	resize(fd, 1000);
	verify_zero(p + 1000, page - 1000, "the rest of the last page after a cut");
	resize(fd, 2 * page);
	verify(p, 1000, 1, 0, "what was kept");
	verify_zero(p + 1000, 2 * page - 1000, "loads after growing again");
	get(fd, data, 2 * page, 0);
	verify_zero(data + 1000, 2 * page - 1000, "read(2) after growing again");
}

void point_truncate_private(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_private(fd, 4 * page);

	fill(p + 2 * page, page, 2, 0);
	resize(fd, 2 * page);
	check_signal(signal_of_load(p + 2 * page), SIGBUS, "a load from a private copy cut off");
	resize(fd, 4 * page);
	verify_zero(p + 2 * page, page, "the private page after growing again");
}

void point_extend_by_write(void)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_shared(fd, 2 * page);
	uint8_t *data = aligned_buffer(page);

	check_signal(signal_of_load(p + page), SIGBUS, "a load behind the end");
	fill(data, page, 2, 0);
	put(fd, data, page, page);
	verify(p + page, page, 2, 0, "loads of what was written behind the end");
}

void point_hole_reads_zero(void)
{
	int fd = create_hole("file", 16 * page);
	uint8_t *p = map_shared(fd, 16 * page);
	blkcnt_t before = blocks_of(fd);

	verify_zero(p, 16 * page, "a hole");
	CHECK(!msync(p, 16 * page, MS_SYNC), "msync of a hole: %m");
	CHECK(blocks_of(fd) == before, "loads from a hole have allocated %lld blocks",
	      (long long)(blocks_of(fd) - before));
}

/* Twelve pages: ext2 needs no block of pointers for them. */
void point_hole_store(void)
{
	int fd = create_hole("file", 12 * page);
	uint8_t *p = map_shared(fd, 12 * page);
	blkcnt_t before = blocks_of(fd);
	size_t at;

	for (at = page; at < 12 * page; at += 4 * page) {
		CHECK(!p[at], "a hole does not read as zero");
		fill(p + at, 10, 1, at);
		verify_file(fd, 10, 1, at, "read(2) of what was stored into a hole");
		verify_zero(p + at + 10, page - 10, "the rest of the page");
		verify_zero(p + at - page, page, "the hole before");
	}
	CHECK(!msync(p, 12 * page, MS_SYNC), "msync: %m");
	CHECK(blocks_of(fd) - before == (blkcnt_t)(3 * page / 512),
	      "3 pages stored took %lld blocks of 512 bytes",
	      (long long)(blocks_of(fd) - before));
}

static void expect_pattern(void *arg)
{
	uint8_t *p = arg;

	verify(p, page, 2, 0, "the mapping that a child has from its parent");
}

/* Every mapping of the hole has the zero page; one store has to take it away from all. */
void point_hole_store_elsewhere(void)
{
	int fd = create_hole("file", 2 * page);
	uint8_t *p = map_shared(fd, 2 * page), *q = map_shared(fd, 2 * page);
	uint8_t *private = map_private(fd, 2 * page);

	verify_zero(p, 2 * page, "the first mapping");
	verify_zero(q, 2 * page, "the second mapping");
	verify_zero(private, 2 * page, "a private mapping");
	fill(p, page, 2, 0);
	verify(q, page, 2, 0, "the second mapping after a store by the first");
	verify(private, page, 2, 0, "a private mapping after a store by the first");
	join(start(expect_pattern, q));
	verify_zero(q + page, page, "the page that is still a hole");
}

void point_hole_write(void)
{
	int fd = create_hole("file", 3 * page);
	uint8_t *p = map_shared(fd, 3 * page);
	uint8_t data[100];

	verify_zero(p, 3 * page, "a hole");
	fill(data, sizeof(data), 1, 0);
	put(fd, data, sizeof(data), page + 50);
	verify(p + page + 50, sizeof(data), 1, 0, "loads of what was written into a mapped hole");
	verify_zero(p, page + 50, "the bytes before");
	verify_zero(p + page + 150, 2 * page - 150, "the bytes behind");
}

void point_preallocated(void)
{
	int fd = create("file");
	uint8_t *p;

	allocate(fd, 0, 0, 16 * page, "fallocate");
	p = map_shared(fd, 16 * page);
	verify_zero(p, 8 * page, "preallocated pages");
	fill(p + 4 * page, 8 * page, 1, 4 * page);
	verify_file(fd, 8 * page, 1, 4 * page, "read(2) of what was stored");
	verify_zero(p, 4 * page, "the pages before");
	verify_zero(p + 12 * page, 4 * page, "the pages behind");
}

/*
 * ext4 writes zeros to a short preallocated extent, and has it written as a whole, when the first of its
 * pages gets data. Who has mapped the others as a hole must still see what write(2) puts there.
 */
static void preallocated_beside(bool store)
{
	int fd = create("file");
	uint8_t *data = aligned_buffer(6 * page), *p, *private;

	allocate(fd, 0, 0, 6 * page, "fallocate");
	p = map_shared(fd, 6 * page);
	private = map_private(fd, 6 * page);
	verify_zero(p, 6 * page, "preallocated pages");
	verify_zero(private, 6 * page, "preallocated pages, mapped privately");
	fill(data, 6 * page, 1, 0);
	if (store)
		memcpy(p + 2 * page, data + 2 * page, page);
	else
		put(fd, data + 2 * page, page, 2 * page);
	put(fd, data + 3 * page, 3 * page, 3 * page);
	put(fd, data, 2 * page, 0);
	verify_file(fd, 6 * page, 1, 0, "read(2) of what was written");
	verify(p, 6 * page, 1, 0, "loads of what was written");
	verify(private, 6 * page, 1, 0, "loads from the private mapping");
}

void point_preallocated_beside_store(void)
{
	preallocated_beside(true);
}

void point_preallocated_beside_write(void)
{
	preallocated_beside(false);
}

void point_keep_size(void)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	allocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * page, "fallocate, keeping the size");
	CHECK(file_size(fd) == (off_t)page, "the size has become %lld", (long long)file_size(fd));
	check_signal(signal_of_load(p + page), SIGBUS, "a load from blocks behind the end");
	resize(fd, 4 * page);
	verify_zero(p + page, 3 * page, "preallocated blocks once the file has grown");
}

void point_punch_hole(void)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int fd = create_filled("file", 8 * page, 1);
	uint8_t *p = map_shared(fd, 8 * page);
	blkcnt_t before;

	fill(p, 8 * page, 2, 0);
	CHECK(!fsync(fd), "fsync: %m");
	before = blocks_of(fd);
	allocate(fd, mode, 2 * page, 3 * page, "punch hole");
	verify_zero(p + 2 * page, 3 * page, "loads from the hole");
	verify(p, 2 * page, 2, 0, "loads before the hole");
	verify(p + 5 * page, 3 * page, 2, 5 * page, "loads behind the hole");
	CHECK(before - blocks_of(fd) == (blkcnt_t)(3 * page / 512), "the hole freed %lld blocks",
	      (long long)(before - blocks_of(fd)));
	fill(p, 8 * page, 3, 0);
	verify_file(fd, 8 * page, 3, 0, "the file after stores into the hole");
}

void point_punch_inside_page(void)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int fd = create_filled("file", 3 * page, 1);
	uint8_t *p = map_shared(fd, 3 * page);

	fill(p, 3 * page, 2, 0);
	allocate(fd, mode, 100, 2 * page, "punch hole");
	verify(p, 100, 2, 0, "the bytes before the hole");
	verify_zero(p + 100, 2 * page, "the hole, from the middle of a page");
	verify(p + 2 * page + 100, page - 100, 2, 2 * page + 100, "the bytes behind the hole");
}

void point_punch_private(void)
{
	const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	int fd = create_filled("file", 2 * page, 1);
	uint8_t *p = map_private(fd, 2 * page);

	fill(p, page, 2, 0);
	verify(p + page, page, 1, page, "a private page that is not copied");
	allocate(fd, mode, 0, 2 * page, "punch hole");
	verify(p, page, 2, 0, "the private copy of a page punched out");
	verify_zero(p + page, page, "the page that was not copied");
}

void point_zero_range(void)
{
	int fd = create_filled("file", 8 * page, 1);
	uint8_t *p = map_shared(fd, 8 * page);

	fill(p, 8 * page, 2, 0);
	allocate(fd, FALLOC_FL_ZERO_RANGE, page + 10, 5 * page, "zero range");
	verify(p, page + 10, 2, 0, "loads before the range");
	verify_zero(p + page + 10, 5 * page, "loads from the range");
	verify(p + 6 * page + 10, 2 * page - 10, 2, 6 * page + 10, "loads behind the range");
	fill(p, 8 * page, 3, 0);
	verify_file(fd, 8 * page, 3, 0, "the file after stores");
}

void point_collapse_range(void)
{
	int fd = create_filled("file", 8 * page, 1);
	uint8_t *p = map_shared(fd, 8 * page);

	fill(p, 8 * page, 2, 0);
	allocate(fd, FALLOC_FL_COLLAPSE_RANGE, 2 * page, 3 * page, "collapse range");
	CHECK(file_size(fd) == (off_t)(5 * page), "the size has become %lld",
	      (long long)file_size(fd));
	verify(p, 2 * page, 2, 0, "loads before the range");
	verify(p + 2 * page, 3 * page, 2, 5 * page, "loads of what has moved down");
	check_signal(signal_of_load(p + 5 * page), SIGBUS, "a load behind the new end");
	fill(p, 5 * page, 3, 0);
	verify_file(fd, 5 * page, 3, 0, "the file after stores");
}

void point_insert_range(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 8 * page);

	fill(p, 4 * page, 2, 0);
	allocate(fd, FALLOC_FL_INSERT_RANGE, page, 2 * page, "insert range");
	CHECK(file_size(fd) == (off_t)(6 * page), "the size has become %lld",
	      (long long)file_size(fd));
	verify(p, page, 2, 0, "loads before the range");
	verify_zero(p + page, 2 * page, "loads from the range");
	verify(p + 3 * page, 3 * page, 2, page, "loads of what has moved up");
	fill(p, 6 * page, 3, 0);
	verify_file(fd, 6 * page, 3, 0, "the file after stores");
}

void point_seek_data(void)
{
	int fd = create_hole("file", 16 * page);
	uint8_t *p = map_shared(fd, 16 * page);
	off_t data, hole;

	fill(p + 5 * page, 2 * page, 1, 0);
	data = lseek(fd, 0, SEEK_DATA);
	hole = lseek(fd, 5 * page, SEEK_HOLE);
	CHECK(data == (off_t)(5 * page), "SEEK_DATA: %lld, stored at page 5", (long long)data);
	CHECK(hole == (off_t)(7 * page), "SEEK_HOLE: %lld, stored up to page 7", (long long)hole);
}

struct race {
	uint8_t *p;
	size_t len;
	bool stop;
};

static void *store_for_ever(void *arg)
{
	struct race *race = arg;
	size_t off = 0;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		*(volatile uint8_t *)(race->p + off) = 0xee;
		off = (off + page) % race->len;
	}
	return NULL;
}

/* Stores fault pages in while they are punched out: each page is whole, and is the file's. */
void point_punch_race(void)
{
	struct race race = { .len = 16 * page };
	int fd = create_filled("file", race.len, 1);
	uint8_t *seen = aligned_buffer(race.len);
	pthread_t threads[2];
	size_t i, round;

	race.p = map_shared(fd, race.len);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		CHECK(!pthread_create(&threads[i], NULL, store_for_ever, &race), "no thread");
	for (round = 0; round < 100; round++)
		allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, race.len,
			 "punch hole");
	__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);

	get(fd, seen, race.len, 0);
	CHECK(!memcmp(seen, race.p, race.len), "file and mapping differ after the race");
	for (i = 0; i < race.len; i += page) {
		CHECK(!seen[i] || seen[i] == 0xee, "page %zu holds 0x%02x", i / page, seen[i]);
		verify_zero(seen + i + 1, page - 1, "the rest of a page punched out");
	}
	race.p[0] = 0x11;
	allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, race.len, "punch hole");
	verify_zero(race.p, race.len, "the file once nobody stores");
}
