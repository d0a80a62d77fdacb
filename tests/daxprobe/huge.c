// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group huge: a file whose blocks lie together, at a multiple of 2 MiB, and is mapped so as well, is
 * mapped by one entry. What then happens to a part of it must happen to that part only. That the
 * mapping is huge is seen by what it saves: one fault for all its pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daxprobe.h"

#define HUGE_BYTES ((size_t)2 << 20)
#define HUGE_PAGES (HUGE_BYTES / page)
/* Other faults of the process while somebody counts */
#define FEW_FAULTS 8

/* A file of two such pieces, allocated and filled with seed 1. */
static int create_huge(const char *name)
{
	int fd = create(name);
	uint8_t *data = aligned_buffer(2 * HUGE_BYTES);

	CHECK(!fallocate(fd, 0, 0, 2 * HUGE_BYTES), "fallocate: %m");
	fill(data, 2 * HUGE_BYTES, 1, 0);
	put(fd, data, 2 * HUGE_BYTES, 0);
	CHECK(!fsync(fd), "fsync: %m");
	munmap(data, 2 * HUGE_BYTES);
	return fd;
}

static uint8_t *map_at(uint8_t *place, int fd, size_t len, int flags)
{
	uint8_t *p = mmap(place, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);

	CHECK(p == place, "mmap: %m");
	return p;
}

static uint8_t *map_huge(int fd, int flags)
{
	return map_at(reserve(2 * HUGE_BYTES, HUGE_BYTES), fd, 2 * HUGE_BYTES, flags);
}

static long faults_of_loads(const uint8_t *p, size_t pages)
{
	const long before = minor_faults();
	size_t i;

	for (i = 0; i < pages; i++)
		(void)*(volatile const uint8_t *)(p + i * page);
	return minor_faults() - before;
}

static long faults_of_stores(uint8_t *p, size_t pages)
{
	const long before = minor_faults();
	size_t i;

	for (i = 0; i < pages; i++)
		*(volatile uint8_t *)(p + i * page) ^= 0;
	return minor_faults() - before;
}

static void check_few(long faults, const char *what)
{
	CHECK(faults <= FEW_FAULTS, "%s of %zu pages took %ld faults: they are not mapped at once",
	      what, HUGE_PAGES, faults);
}

/* A file whose two pieces are both mapped at once, by stores, and hold seed 1. */
static uint8_t *touched_huge(int *fd)
{
	uint8_t *p;

	*fd = create_huge("huge");
	p = map_huge(*fd, MAP_SHARED);
	check_few(faults_of_stores(p, HUGE_PAGES), "stores to the first piece");
	check_few(faults_of_stores(p + HUGE_BYTES, HUGE_PAGES), "stores to the second piece");
	return p;
}

void point_huge_stores(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd);

	verify(p, 2 * HUGE_BYTES, 1, 0, "the mapping");
	fill(p, 2 * HUGE_BYTES, 2, 0);
	verify_file(fd, 2 * HUGE_BYTES, 2, 0, "the file");
	put(fd, "hello", 5, HUGE_BYTES - 2);
	CHECK(!memcmp(p + HUGE_BYTES - 2, "hello", 5), "a write(2) is not what loads see");
}

void point_huge_loads(void)
{
	int fd = create_huge("huge");
	uint8_t *p = map_huge(fd, MAP_SHARED);

	check_few(faults_of_loads(p, HUGE_PAGES), "loads");
	verify(p, 2 * HUGE_BYTES, 1, 0, "the mapping");
	check_few(faults_of_stores(p, HUGE_PAGES), "stores after loads");
	fill(p, 2 * HUGE_BYTES, 2, 0);
	verify_file(fd, 2 * HUGE_BYTES, 2, 0, "the file");
}

/* Loads of a hole see one zero page of that size; a store into it takes a block, or all of them. */
void point_huge_hole(void)
{
	int fd = create_hole("huge", 2 * HUGE_BYTES);
	uint8_t *p = map_huge(fd, MAP_SHARED);

	check_few(faults_of_loads(p, HUGE_PAGES), "loads of a hole");
	verify_zero(p, 2 * HUGE_BYTES, "the hole");
	CHECK(!blocks_of(fd), "a hole that was read has %lld blocks", (long long)blocks_of(fd));
	p[5 * page] = 1;
	verify_zero(p, 5 * page, "the pages before the store");
	verify_zero(p + 6 * page, HUGE_BYTES - 6 * page, "the pages behind it");
	fill(p, HUGE_BYTES, 2, 0);
	verify_file(fd, HUGE_BYTES, 2, 0, "the file");
	verify_zero(p + HUGE_BYTES, HUGE_BYTES, "the rest of the hole");
}

void point_huge_preallocated(void)
{
	int fd = create("huge");
	uint8_t *p;

	CHECK(!fallocate(fd, 0, 0, 2 * HUGE_BYTES), "fallocate: %m");
	p = map_huge(fd, MAP_SHARED);
	verify_zero(p + HUGE_BYTES, HUGE_BYTES, "the second piece");
	check_few(faults_of_stores(p, HUGE_PAGES), "stores to what was preallocated");
	verify_zero(p, 2 * HUGE_BYTES, "preallocated blocks");
	fill(p, 2 * HUGE_BYTES, 2, 0);
	verify_file(fd, 2 * HUGE_BYTES, 2, 0, "the file");
}

/* The same file at an address that does not fit works as well, page by page. */
void point_huge_misaligned(void)
{
	int fd = create_huge("huge");
	uint8_t *p = reserve(2 * HUGE_BYTES + page, HUGE_BYTES) + page;

	map_at(p, fd, 2 * HUGE_BYTES, MAP_SHARED);
	CHECK(faults_of_stores(p, HUGE_PAGES) > (long)HUGE_PAGES / 2,
	      "a mapping at an odd address takes one fault: this test would see nothing");
	verify(p, 2 * HUGE_BYTES, 1, 0, "the mapping");
}

/* Who does not want large mappings has none, and may change his mind. */
void point_huge_advised_against(void)
{
	int fd = create_huge("huge");
	uint8_t *p = map_huge(fd, MAP_SHARED);

	CHECK(!madvise(p, 2 * HUGE_BYTES, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE: %m");
	CHECK(faults_of_stores(p, HUGE_PAGES) > (long)HUGE_PAGES / 2,
	      "MADV_NOHUGEPAGE is not heeded");
	verify(p, 2 * HUGE_BYTES, 1, 0, "the mapping");
	CHECK(!munmap(p, 2 * HUGE_BYTES), "munmap: %m");
	resize(fd, 0);	/* the file remembers how it was mapped */
	CHECK(!fallocate(fd, 0, 0, 2 * HUGE_BYTES), "fallocate: %m");
	p = map_huge(fd, MAP_SHARED);
	CHECK(!madvise(p, 2 * HUGE_BYTES, MADV_HUGEPAGE), "MADV_HUGEPAGE: %m");
	check_few(faults_of_stores(p, HUGE_PAGES), "stores");
	CHECK(!prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), "PR_SET_THP_DISABLE: %m");
	CHECK(faults_of_stores(p + HUGE_BYTES, HUGE_PAGES) > (long)HUGE_PAGES / 2,
	      "PR_SET_THP_DISABLE is not heeded");
}

void point_huge_truncate(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd);
	const size_t kept = HUGE_BYTES / 2 + 100;

	resize(fd, kept);
	verify(p, kept, 1, 0, "what is left");
	verify_zero(p + kept, page - kept % page, "the rest of the last page");
	check_signal(signal_of_load(p + kept + page), SIGBUS, "a load behind the end");
	check_signal(signal_of_store(p + HUGE_BYTES), SIGBUS, "a store behind the end");
	resize(fd, 2 * HUGE_BYTES);
	verify(p, kept, 1, 0, "what was left, the file grown again");
	verify_zero(p + kept, 2 * HUGE_BYTES - kept, "what was cut off");
	fill(p, 2 * HUGE_BYTES, 2, 0);
	verify_file(fd, 2 * HUGE_BYTES, 2, 0, "the file");
}

void point_huge_punch(void)
{
	const size_t at = 100 * page;
	int fd;
	uint8_t *p = touched_huge(&fd);

	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, page), "punch: %m");
	verify(p, at, 1, 0, "the pages before the hole");
	verify_zero(p + at, page, "the hole");
	verify(p + at + page, 2 * HUGE_BYTES - at - page, 1, at + page, "the pages behind it");
	fill(p, HUGE_BYTES, 2, 0);
	verify_file(fd, HUGE_BYTES, 2, 0, "the file after stores");
	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE_BYTES),
	      "punch: %m");
	verify_zero(p, HUGE_BYTES, "the first piece, punched as a whole");
	verify(p + HUGE_BYTES, HUGE_BYTES, 1, HUGE_BYTES, "the second piece");
}

/* msync write-protects: the next store is noticed, and what it stores is written back again. */
void point_huge_msync(void)
{
	int fd, round;
	uint8_t *p = touched_huge(&fd);

	for (round = 2; round < 5; round++) {
		CHECK(!msync(p, 2 * HUGE_BYTES, MS_SYNC), "msync: %m");
		CHECK(faults_of_stores(p + 7 * page, 1) > 0,
		      "the store after msync took no fault: nobody would write it back");
		fill(p, 2 * HUGE_BYTES, round, 0);
		verify_file(fd, 2 * HUGE_BYTES, round, 0, "the file");
	}
	/* A part of a piece: the rest stays dirty, and right. */
	CHECK(!msync(p + 5 * page, page, MS_SYNC), "msync: %m");
	fill(p, 2 * HUGE_BYTES, 9, 0);
	CHECK(!fsync(fd), "fsync: %m");
	verify_file(fd, 2 * HUGE_BYTES, 9, 0, "the file");
}

void point_huge_fork(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd);
	pid_t pid = fork();

	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		verify(p, 2 * HUGE_BYTES, 1, 0, "the mapping in a child");
		fill(p, HUGE_BYTES, 2, 0);
		CHECK(!munmap(p + 3 * page, page), "munmap of a page: %m");
		_exit(0);
	}
	join(pid);
	verify(p, HUGE_BYTES, 2, 0, "what the child stored");
	verify(p + HUGE_BYTES, HUGE_BYTES, 1, HUGE_BYTES, "the second piece");
	verify_file(fd, HUGE_BYTES, 2, 0, "the file");
}

void point_huge_private(void)
{
	int fd = create_huge("huge");
	uint8_t *p = map_huge(fd, MAP_PRIVATE), *shared = map_huge(fd, MAP_SHARED);
	pid_t pid;

	verify(p, 2 * HUGE_BYTES, 1, 0, "the private mapping");
	fill(p + 9 * page, page, 2, 0);
	verify(p, 9 * page, 1, 0, "the pages before the copy");
	verify(p + 9 * page, page, 2, 0, "the copy");
	verify(p + 10 * page, 2 * HUGE_BYTES - 10 * page, 1, 10 * page, "the pages behind it");
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		fill(p, HUGE_BYTES, 3, 0);
		_exit(0);
	}
	join(pid);
	verify(p + 9 * page, page, 2, 0, "the parent's copy");
	verify(shared, 2 * HUGE_BYTES, 1, 0, "the shared mapping");
	verify_file(fd, 2 * HUGE_BYTES, 1, 0, "the file");
}

void point_huge_protect(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd);

	CHECK(!mprotect(p + 50 * page, page, PROT_READ), "mprotect: %m");
	check_signal(signal_of_store(p + 50 * page), SIGSEGV, "a store to the read-only page");
	check_signal(signal_of_load(p + 50 * page), 0, "a load from it");
	p[49 * page] = 1;
	p[51 * page] = 1;
	CHECK(!mprotect(p + 60 * page, page, PROT_NONE), "mprotect: %m");
	check_signal(signal_of_load(p + 60 * page), SIGSEGV, "a load from the forbidden page");
	CHECK(!mprotect(p, 2 * HUGE_BYTES, PROT_READ | PROT_WRITE), "mprotect: %m");
	fill(p, 2 * HUGE_BYTES, 2, 0);
	verify_file(fd, 2 * HUGE_BYTES, 2, 0, "the file");
}

void point_huge_mremap(void)
{
	uint8_t *p, *place = reserve(2 * HUGE_BYTES, HUGE_BYTES), *q;
	int fd;

	p = touched_huge(&fd);
	q = mremap(p, HUGE_BYTES, HUGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	CHECK(q == place, "mremap of a whole piece: %m");
	verify(q, HUGE_BYTES, 1, 0, "the moved piece");
	check_signal(signal_of_load(p), SIGSEGV, "its old address");
	q = mremap(p + HUGE_BYTES, 3 * page, 3 * page, MREMAP_MAYMOVE | MREMAP_FIXED,
		   place + HUGE_BYTES + page);
	CHECK(q == place + HUGE_BYTES + page, "mremap of a part: %m");
	verify(q, 3 * page, 1, HUGE_BYTES, "the moved part");
	verify(p + HUGE_BYTES + 3 * page, HUGE_BYTES - 3 * page, 1, HUGE_BYTES + 3 * page,
	       "what was left behind");
	fill(place, HUGE_BYTES, 2, 0);
	verify_file(fd, HUGE_BYTES, 2, 0, "the file");
}

void point_huge_unmap_middle(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd);

	CHECK(!munmap(p + 20 * page, 5 * page), "munmap: %m");
	verify(p, 20 * page, 1, 0, "the pages before");
	verify(p + 25 * page, HUGE_BYTES - 25 * page, 1, 25 * page, "the pages behind");
	fill(p, 20 * page, 2, 0);
	verify_file(fd, 20 * page, 2, 0, "the file");
	CHECK(!madvise(p, 10 * page, MADV_DONTNEED), "MADV_DONTNEED of a part: %m");
	verify(p, 20 * page, 2, 0, "the pages before");
}

void point_huge_code(void)
{
	int fd = create_huge("huge"), round;
	uint8_t code[16], *p, *place = reserve(2 * HUGE_BYTES, HUGE_BYTES);
	size_t i, len;

	for (round = 0; round < 3; round++) {
		for (i = 0; i < 100; i++) {
			len = make_code(code, (i + round) % 200);
			put(fd, code, len, i * 5 * page + 64);
		}
		p = mmap(place, 2 * HUGE_BYTES, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, fd,
			 0);
		CHECK(p == place, "mmap: %m");
		for (i = 100; i--;)
			CHECK(call_code(p + i * 5 * page + 64) == (int)(i + round) % 200,
			      "the function in page %zu is another one", i * 5);
	}
}

void point_huge_direct(void)
{
	int fd, direct = direct_file(HUGE_BYTES, 3);
	uint8_t *p = touched_huge(&fd), *data = aligned_buffer(HUGE_BYTES);

	CHECK(pwrite(direct, p, HUGE_BYTES, 0) == (ssize_t)HUGE_BYTES, "O_DIRECT write: %m");
	get(direct, data, HUGE_BYTES, 0);
	verify(data, HUGE_BYTES, 1, 0, "the disk");
	fill(data, HUGE_BYTES, 4, 0);
	put(direct, data, HUGE_BYTES, 0);
	CHECK(pread(direct, p + 512, HUGE_BYTES, 0) == (ssize_t)HUGE_BYTES, "O_DIRECT read: %m");
	verify(p, 512, 1, 0, "the bytes before");
	verify(p + 512, HUGE_BYTES, 4, 0, "what was read");
	verify(p + 512 + HUGE_BYTES, HUGE_BYTES - 512, 1, 512 + HUGE_BYTES, "the bytes behind");
	verify_file(fd, 512, 1, 0, "the file");
}

void point_huge_remote(void)
{
	int fd;
	uint8_t *p = touched_huge(&fd), *data = aligned_buffer(3 * page);
	pid_t pid = victim();

	CHECK(vm_copy(pid, data, p + HUGE_BYTES - page, 3 * page, false) == (ssize_t)(3 * page),
	      "process_vm_readv: %m");
	verify(data, 3 * page, 1, HUGE_BYTES - page, "what process_vm_readv read");
	fill(data, 3 * page, 2, 0);
	CHECK(vm_copy(pid, data, p + 100, page, true) == (ssize_t)page, "process_vm_writev: %m");
	verify(p + 100, page, 2, 0, "what process_vm_writev wrote");
	verify(p + 100 + page, page, 1, 100 + page, "the bytes behind");
}

/* One page of a piece is in a pipe: all that takes that page waits. */
void point_huge_pin(void)
{
	int fd, ends[2];
	uint8_t *p = touched_huge(&fd), *data = aligned_buffer(page);
	struct iovec part = { p + 33 * page, page };
	pid_t pid;

	CHECK(!pipe(ends), "pipe: %m");
	CHECK(vmsplice(ends[1], &part, 1, 0) == (ssize_t)page, "vmsplice: %m");
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		resize(fd, 10 * page);
		_exit(0);
	}
	CHECK(!ends_within(pid, 300), "truncate did not wait for a page that a pipe has");
	CHECK(read(ends[0], data, page) == (ssize_t)page, "read: %m");
	verify(data, page, 1, 33 * page, "the page in the pipe");
	CHECK(ends_within(pid, 10000), "10 s after the page was free truncate still waits");
	join(pid);
	verify(p, 10 * page, 1, 0, "what is left");
}

struct racer {
	uint8_t *p;
	int fd;
	unsigned int seed;
};

static void *store_all(void *arg)
{
	const struct racer *racer = arg;
	size_t i;

	for (i = 0; i < HUGE_PAGES; i++)
		fill(racer->p + i * page + racer->seed * 64, 64, racer->seed, i * page);
	return NULL;
}

/* Threads that fault on one piece at the same time, while it comes and goes */
void point_huge_race(void)
{
	enum { THREADS = 4, ROUNDS = 20 };
	int fd = create_huge("huge"), round;
	uint8_t *p = map_huge(fd, MAP_SHARED);
	struct racer racers[THREADS];
	pthread_t threads[THREADS];
	size_t i, at;

	for (round = 0; round < ROUNDS; round++) {
		for (i = 0; i < THREADS; i++) {
			racers[i] = (struct racer){ p, fd, i };
			CHECK(!pthread_create(&threads[i], NULL, store_all, &racers[i]),
			      "no thread");
		}
		CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HUGE_BYTES,
				 HUGE_BYTES), "punch: %m");
		CHECK(!msync(p, HUGE_BYTES, MS_SYNC), "msync: %m");
		CHECK(!madvise(p, HUGE_BYTES, MADV_DONTNEED), "MADV_DONTNEED: %m");
		for (i = 0; i < THREADS; i++)
			CHECK(!pthread_join(threads[i], NULL), "pthread_join failed");
		for (at = 0; at < HUGE_PAGES; at += 37)
			for (i = 0; i < THREADS; i++)
				verify(p + at * page + i * 64, 64, i, at * page, "the mapping");
		verify_zero(p + HUGE_BYTES, HUGE_BYTES, "the punched piece");
		CHECK(!munmap(p, 2 * HUGE_BYTES), "munmap: %m");
		p = map_huge(fd, MAP_SHARED);
	}
}
