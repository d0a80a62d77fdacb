// SPDX-License-Identifier: GPL-2.0-only
/* Group mapping: what can be done to a mapping, and how it looks from outside. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxprobe.h"

void point_file_is_dax(void)
{
	int fd = create_filled("file", page, 1);

	CHECK(file_is_dax(fd), "statx says that the file is not in DAX mode");
}

/* mincore(2) asks the page cache for what is not mapped: data that went through it shows. */
void point_no_page_cache(void)
{
	enum { PAGES = 32 };
	int fd = create_filled("file", PAGES * page, 1);
	unsigned char in_core[PAGES];
	uint8_t *p;
	int i;

	verify_file(fd, PAGES * page, 1, 0, "the file");
	p = map_shared(fd, PAGES * page);
	CHECK(!mincore(p, PAGES * page, in_core), "mincore: %m");
	for (i = 0; i < PAGES; i++)
		CHECK(!(in_core[i] & 1), "page %d is in the page cache after read and write", i);
}

void point_mincore(void)
{
	enum { PAGES = 8 };
	int fd = create_hole("file", PAGES * page);
	uint8_t *p = map_shared(fd, PAGES * page);
	unsigned char in_core[PAGES];
	int i;

	for (i = 0; i < PAGES; i += 2)
		p[i * page] = 1;
	CHECK(!mincore(p, PAGES * page, in_core), "mincore: %m");
	for (i = 0; i < PAGES; i++)
		CHECK((in_core[i] & 1) == !(i & 1), "mincore of page %d, which was %stouched: %d",
		      i, i & 1 ? "not " : "", in_core[i] & 1);
}

/* The frame behind a user address; 0 if none is mapped. */
static uint64_t frame_of(const void *p)
{
	FILE *pagemap = fopen("/proc/self/pagemap", "r");
	uint64_t entry;

	CHECK(pagemap, "/proc/self/pagemap: %m");
	CHECK(!fseeko(pagemap, (off_t)((uintptr_t)p / page) * sizeof(entry), SEEK_SET) &&
	      fread(&entry, sizeof(entry), 1, pagemap) == 1, "/proc/self/pagemap: %m");
	fclose(pagemap);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

static bool is_pmem(uint64_t address)
{
	FILE *iomem = fopen("/proc/iomem", "r");
	uint64_t first, last;
	bool found = false;
	char line[256];

	CHECK(iomem, "/proc/iomem: %m");
	while (!found && fgets(line, sizeof(line), iomem))
		found = sscanf(line, " %" SCNx64 "-%" SCNx64, &first, &last) == 2 &&
			(strstr(line, "namespace") || strstr(line, "Persistent Memory")) &&
			address >= first && address <= last;
	fclose(iomem);
	return found;
}

void point_frame_is_pmem(void)
{
	int fd = create_filled("file", 2 * page, 1);
	uint8_t *p = map_shared(fd, 2 * page), *q = map_shared(fd, 2 * page);
	uint8_t *copy = map_private(fd, 2 * page);
	uint64_t frame;

	CHECK(!frame_of(p), "pagemap shows a frame before the first access");
	verify(p, 2 * page, 1, 0, "loads");
	verify(q, 2 * page, 1, 0, "loads by the second mapping");
	verify(copy, 2 * page, 1, 0, "loads by a private mapping");
	frame = frame_of(p);
	CHECK(frame, "pagemap shows no frame after an access");
	CHECK(is_pmem(frame * page),
	      "frame 0x%" PRIx64 " is in no pmem range of /proc/iomem", frame);
	CHECK(frame_of(q) == frame, "two mappings of one page show different frames");
	CHECK(frame_of(copy) == frame, "an untouched private page is not the file's own frame");
	copy[0] = 1;
	CHECK(frame_of(copy), "pagemap shows no frame for a private copy");
	CHECK(!is_pmem(frame_of(copy) * page), "a private copy lies in pmem");
}

void point_smaps(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);
	FILE *smaps = fopen("/proc/self/smaps", "r");
	bool inside = false, flags = false;
	unsigned long first, last, size = 0;
	char line[512];

	CHECK(smaps, "/proc/self/smaps: %m");
	fill(p, 4 * page, 2, 0);
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &first, &last) == 2)
			inside = first <= (uintptr_t)p && (uintptr_t)p < last;
		if (inside && sscanf(line, "Size: %lu kB", &size) == 1)
			CHECK(size >= 4 * page / 1024, "smaps: Size: %lu kB", size);
		if (inside && !strncmp(line, "VmFlags:", 8))
			flags = strstr(line, " sh ") && strstr(line, " wr ");
	}
	CHECK(!ferror(smaps), "/proc/self/smaps: %m");
	fclose(smaps);
	CHECK(size, "smaps has no entry with a size for the mapping");
	CHECK(flags, "smaps has no VmFlags line with `sh` and `wr` for the mapping");
}

void point_read_then_write_fault(void)
{
	const size_t len = 8 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);

	verify(p, len, 1, 0, "loads, which map the pages");
	fill(p, len, 2, 0);
	verify(p, len, 2, 0, "loads after stores to pages that were mapped for reading");
	verify_file(fd, len, 2, 0, "the file");
}

void point_mremap_grow(void)
{
	int fd = create_filled("file", 8 * page, 1);
	uint8_t *base = reserve(8 * page, page), *p, *q;

	p = mmap(base, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(p == base, "mmap: %m");
	fill(p, 2 * page, 2, 0);
	CHECK(!munmap(base + 2 * page, 6 * page), "munmap: %m");
	q = mremap(p, 2 * page, 8 * page, 0);
	CHECK(q != MAP_FAILED, "growing in place, with room behind: %m");
	CHECK(q == p, "mremap without MREMAP_MAYMOVE has moved the mapping");
	verify(q, 2 * page, 2, 0, "the first pages");
	verify(q + 2 * page, 6 * page, 1, 2 * page, "the pages it has grown by");
	fill(q, 8 * page, 3, 0);
	verify_file(fd, 8 * page, 3, 0, "the file after stores to all of it");
}

void point_mremap_move(void)
{
	int fd = create_filled("file", 8 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page), *target = reserve(8 * page, 16 * page), *q;

	fill(p, 2 * page, 2, 0);	/* pages 2 and 3 have not been touched */
	q = mremap(p, 4 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	CHECK(q == target, "mremap to another address: %m");
	verify(q, 2 * page, 2, 0, "the pages that were touched before");
	verify(q + 2 * page, 6 * page, 1, 2 * page, "the others");
	fill(q, 8 * page, 3, 0);
	verify_file(fd, 8 * page, 3, 0, "the file");
	check_signal(signal_of_load(p), SIGSEGV, "a load at the old address");
}

void point_mremap_shrink(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	fill(p, 4 * page, 2, 0);
	CHECK(mremap(p, 4 * page, page, 0) == p, "shrinking: %m");
	verify(p, page, 2, 0, "what is left");
	check_signal(signal_of_load(p + page), SIGSEGV, "a load behind the new end");
	verify_file(fd, 4 * page, 2, 0, "the file");
}

void point_mremap_private(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_private(fd, 4 * page), *target = reserve(4 * page, 16 * page), *q;

	fill(p, page, 2, 0);
	verify(p + page, page, 1, page, "a page mapped but not copied");
	q = mremap(p, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	CHECK(q == target, "mremap: %m");
	verify(q, page, 2, 0, "the private copy after the move");
	verify(q + page, 3 * page, 1, page, "the other pages after the move");
	verify_file(fd, 4 * page, 1, 0, "the file");
}

void point_map_again(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1), again;
	unsigned int round;
	uint8_t *p;

	for (round = 2; round < 22; round++) {
		p = map_shared(fd, len);
		verify(p, len, round - 1, 0, "loads after unmapping and mapping again");
		fill(p, len, round, 0);
		CHECK(!munmap(p, len), "munmap: %m");
	}
	CHECK(!close(fd), "close: %m");
	again = open(in_dir(point_dir, "file"), O_RDWR);
	CHECK(again >= 0, "open: %m");
	verify_file(again, len, 21, 0, "the file opened again");
}

void point_unmap_middle(void)
{
	int fd = create_filled("file", 5 * page, 1);
	uint8_t *p = map_shared(fd, 5 * page);

	fill(p, 5 * page, 2, 0);
	CHECK(!munmap(p + 2 * page, page), "munmap: %m");
	check_signal(signal_of_store(p + 2 * page), SIGSEGV, "a store into the gap");
	fill(p, 2 * page, 3, 0);
	fill(p + 3 * page, 2 * page, 3, 3 * page);
	verify_file(fd, 2 * page, 3, 0, "the file before the gap");
	verify_file(fd, page, 2, 2 * page, "the file in the gap");
	verify_file(fd, 2 * page, 3, 3 * page, "the file behind the gap");
}

void point_many_mappings(void)
{
	enum { PAGES = 200 };
	int fd = create_filled("file", PAGES * page, 1);
	uint8_t *p[PAGES];
	size_t i;

	for (i = 0; i < PAGES; i++) {	/* in an order that lets no two of them merge */
		size_t at = i * 77 % PAGES;

		p[at] = map(fd, page, PROT_READ | PROT_WRITE, MAP_SHARED, at * page);
	}
	for (i = 0; i < PAGES; i++) {
		verify(p[i], page, 1, i * page, "loads by a mapping of one page");
		fill(p[i], page, 2, i * page);
	}
	verify_file(fd, PAGES * page, 2, 0, "the file");
	for (i = 0; i < PAGES; i++)
		CHECK(!munmap(p[i], page), "munmap: %m");
}

void point_protect(void)
{
	int fd = create_filled("file", 2 * page, 1);
	uint8_t *p = map_shared(fd, 2 * page);

	fill(p, 2 * page, 2, 0);
	CHECK(!mprotect(p, 2 * page, PROT_READ), "mprotect to read-only: %m");
	check_signal(signal_of_store(p), SIGSEGV, "a store to a read-only mapping");
	verify(p, 2 * page, 2, 0, "loads from the read-only mapping");
	CHECK(!mprotect(p, 2 * page, PROT_NONE), "mprotect to none: %m");
	check_signal(signal_of_load(p + page), SIGSEGV, "a load without any permission");
	CHECK(!mprotect(p, 2 * page, PROT_READ | PROT_WRITE), "mprotect to read-write: %m");
	check_signal(signal_of_store(p), 0, "a store with permission again");
	fill(p, 2 * page, 3, 0);
	verify_file(fd, 2 * page, 3, 0, "the file");
}

void point_read_only(void)
{
	int fd = create_filled("file", page, 1), reader;
	void *p;

	reader = open(in_dir(point_dir, "file"), O_RDONLY);
	CHECK(reader >= 0, "open: %m");
	p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0);
	CHECK(p == MAP_FAILED && errno == EACCES,
	      "a writable shared mapping of a read-only descriptor is not refused with EACCES");
	p = map(reader, page, PROT_READ, MAP_SHARED, 0);
	check_signal(signal_of_store(p), SIGSEGV, "a store to a mapping made for reading");
	CHECK_ERRNO(mprotect(p, page, PROT_READ | PROT_WRITE), EACCES);
	verify_file(fd, page, 1, 0, "the file");
}

void point_dontneed_shared(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);

	fill(p, len, 2, 0);
	CHECK(!madvise(p, len, MADV_DONTNEED), "MADV_DONTNEED: %m");
	verify_file(fd, len, 2, 0, "the file after MADV_DONTNEED");
	verify(p, len, 2, 0, "loads after MADV_DONTNEED");
}

void point_dontneed_private(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_private(fd, len);

	fill(p, 2 * page, 2, 0);
	verify(p + 2 * page, 2 * page, 1, 2 * page, "pages that are not copied");
	CHECK(!madvise(p, len, MADV_DONTNEED), "MADV_DONTNEED: %m");
	verify(p, len, 1, 0, "private pages after MADV_DONTNEED: the file's bytes");
}

/* Touches every page and returns the number of faults that took. */
static long faults_of_touching(uint8_t *p, size_t pages, bool store)
{
	long before = minor_faults();
	size_t i;

	for (i = 0; i < pages; i++) {
		if (store)
			*(volatile uint8_t *)(p + i * page) = i;
		else
			(void)*(volatile uint8_t *)(p + i * page);
	}
	return minor_faults() - before;
}

#define FEW 8	/* faults that may happen for other reasons, out of 64 */

void point_map_populate(void)
{
	enum { PAGES = 64 };
	int fd = create_filled("file", PAGES * page, 1);
	uint8_t *p = map(fd, PAGES * page, PROT_READ, MAP_SHARED | MAP_POPULATE, 0);
	long faults = faults_of_touching(p, PAGES, false);

	CHECK(faults < FEW, "%ld faults on loads from %d pages after MAP_POPULATE", faults, PAGES);
	verify(p, PAGES * page, 1, 0, "loads");
}

void point_madvise_populate(void)
{
	enum { PAGES = 64 };
	int fd = create_hole("file", PAGES * page);
	uint8_t *p = map_shared(fd, PAGES * page);
	long faults;

	CHECK(!madvise(p, PAGES * page, MADV_POPULATE_READ), "MADV_POPULATE_READ: %m");
	faults = faults_of_touching(p, PAGES, false);
	CHECK(faults < FEW, "%ld faults on loads after MADV_POPULATE_READ", faults);
	CHECK(!madvise(p, PAGES * page, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE: %m");
	faults = faults_of_touching(p, PAGES, true);
	CHECK(faults < FEW, "%ld faults on stores after MADV_POPULATE_WRITE", faults);
	fill(p, PAGES * page, 2, 0);
	verify_file(fd, PAGES * page, 2, 0, "the file");
}

void point_unlinked(void)
{
	const size_t len = 4 * page;
	int fd = create_filled("file", len, 1);
	uint8_t *p = map_shared(fd, len);

	CHECK(!unlink(in_dir(point_dir, "file")), "unlink: %m");
	fill(p, len, 2, 0);
	verify_file(fd, len, 2, 0, "read(2) from the unlinked file");
	CHECK(!close(fd), "close: %m");
	verify(p, len, 2, 0, "the mapping, all that is left of the file");
	fill(p, len, 3, 0);
	CHECK(!msync(p, len, MS_SYNC), "msync of an unlinked file: %m");
	verify(p, len, 3, 0, "the mapping after msync");
}

void point_renamed(void)
{
	int fd = create_filled("file", page, 1), other = create_filled("other", page, 9);
	uint8_t *p = map_shared(fd, page), *q = map_shared(other, page);
	int again;

	verify(q, page, 9, 0, "the file that will be replaced");
	CHECK(!rename(in_dir(point_dir, "file"), in_dir(point_dir, "other")), "rename: %m");
	fill(p, page, 2, 0);
	again = open(in_dir(point_dir, "other"), O_RDONLY);
	CHECK(again >= 0, "open: %m");
	verify_file(again, page, 2, 0, "the file under its new name");
	verify(q, page, 9, 0, "the mapping of the file that was replaced");
}

void point_big_file(void)
{
	const size_t len = 32 << 20;
	int fd = create_hole("file", len);
	uint8_t *p = map_shared(fd, len);
	uint32_t seen;
	size_t off;

	for (off = 0; off < len; off += page)
		*(volatile uint32_t *)(p + off) = off ^ 0x5a5a5a5a;
	CHECK(!munmap(p, len), "munmap: %m");
	p = map_shared(fd, len);
	for (off = 0; off < len; off += page) {
		seen = *(volatile uint32_t *)(p + off);
		CHECK(seen == (off ^ 0x5a5a5a5a), "the word at %zu is 0x%x", off, seen);
		get(fd, &seen, sizeof(seen), off);
		CHECK(seen == (off ^ 0x5a5a5a5a), "read(2) at %zu: 0x%x", off, seen);
	}
}
