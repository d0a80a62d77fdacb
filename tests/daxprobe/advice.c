// SPDX-License-Identifier: GPL-2.0-only
/* Group advice: madvise in all its kinds, and what /proc tells of pages that are counted. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

/* What older C libraries do not have yet */
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* /proc/PID/pagemap */
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FILE (1ull << 61)
#define PAGEMAP_PFN ((1ull << 55) - 1)

enum answer {
	WORKS,
	REFUSED,	/* EINVAL */
	EITHER,		/* as the kernel is configured */
};

struct advice {
	const char *name;
	int advice;
	enum answer shared;
	enum answer private;
};

static const struct advice advices[] = {
#define ADVICE(name, shared, private) { #name, name, shared, private }
	ADVICE(MADV_NORMAL, WORKS, WORKS),
	ADVICE(MADV_RANDOM, WORKS, WORKS),
	ADVICE(MADV_SEQUENTIAL, WORKS, WORKS),
	ADVICE(MADV_WILLNEED, WORKS, WORKS),
	ADVICE(MADV_COLD, WORKS, WORKS),
	ADVICE(MADV_PAGEOUT, WORKS, WORKS),
	ADVICE(MADV_FREE, REFUSED, REFUSED),		/* anonymous mappings only */
	ADVICE(MADV_DONTDUMP, WORKS, WORKS),
	ADVICE(MADV_DODUMP, WORKS, WORKS),
	ADVICE(MADV_DOFORK, WORKS, WORKS),
	ADVICE(MADV_WIPEONFORK, REFUSED, REFUSED),	/* anonymous mappings only */
	ADVICE(MADV_KEEPONFORK, WORKS, WORKS),
	ADVICE(MADV_MERGEABLE, EITHER, EITHER),
	ADVICE(MADV_UNMERGEABLE, EITHER, EITHER),
	ADVICE(MADV_HUGEPAGE, EITHER, EITHER),
	ADVICE(MADV_NOHUGEPAGE, EITHER, EITHER),
	ADVICE(MADV_COLLAPSE, REFUSED, REFUSED),
	ADVICE(MADV_POPULATE_READ, WORKS, WORKS),
	ADVICE(MADV_POPULATE_WRITE, WORKS, WORKS),
#undef ADVICE
};

static void advise(uint8_t *p, size_t len, const struct advice *a, enum answer answer)
{
	const int ret = madvise(p, len, a->advice);

	CHECK(answer != WORKS || !ret, "%s: %m", a->name);
	CHECK(answer != REFUSED || ret, "%s succeeded", a->name);
	CHECK(!ret || errno == EINVAL, "%s: %m", a->name);
}

/* Whatever the advice, a shared mapping keeps its data, and its stores reach the file. */
void point_advice_shared(void)
{
	enum { PAGES = 4 };
	uint8_t *p = touched(PAGES);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		advise(p, PAGES * page, &advices[i], advices[i].shared);
		verify(p, PAGES * page, i ? i : 2, 0, advices[i].name);
		fill(p, PAGES * page, i + 1, 0);
		CHECK(!msync(p, PAGES * page, MS_SYNC), "msync: %m");
		verify_named("dax", PAGES * page, i + 1, 0, "the file");
	}
	CHECK(!madvise(p, page, MADV_REMOVE) || errno == EOPNOTSUPP, "MADV_REMOVE: %m");
}

/* Half of the pages are copies, half are not. */
void point_advice_private(void)
{
	enum { PAGES = 4 };
	int dax = create_filled("dax", PAGES * page, 1);
	uint8_t *p;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		p = map_private(dax, PAGES * page);
		fill(p, 2 * page, 2, 0);
		(void)*(volatile uint8_t *)(p + 2 * page);
		advise(p, PAGES * page, &advices[i], advices[i].private);
		verify(p, 2 * page, 2, 0, advices[i].name);
		verify(p + 2 * page, 2 * page, 1, 2 * page, advices[i].name);
		CHECK(!munmap(p, PAGES * page), "munmap: %m");
		verify_file(dax, PAGES * page, 1, 0, "the file");
	}
}

void point_advice_remove(void)
{
	uint8_t *p = touched(3);

	CHECK(!madvise(p + page, page, MADV_REMOVE), "MADV_REMOVE: %m");
	verify(p, page, 2, 0, "the page before");
	verify_zero(p + page, page, "the removed page");
	verify(p + 2 * page, page, 2, 2 * page, "the page behind");
}

void point_advice_locked(void)
{
	uint8_t *p = touched(2);

	CHECK(!mlock(p, 2 * page), "mlock: %m");
	/* Linux does not count a DAX mapping as locked: refused or not, nothing may be lost. */
	CHECK(!madvise(p, page, MADV_DONTNEED) || errno == EINVAL, "MADV_DONTNEED: %m");
	CHECK(!madvise(p, page, MADV_DONTNEED_LOCKED) || errno == EINVAL,
	      "MADV_DONTNEED_LOCKED: %m");
	verify(p, 2 * page, 2, 0, "the locked mapping");
	CHECK(!munlock(p, 2 * page), "munlock: %m");
}

void point_advice_dontfork(void)
{
	uint8_t *p = touched(2);
	pid_t pid;

	CHECK(!madvise(p, page, MADV_DONTFORK), "MADV_DONTFORK: %m");
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		check_signal(signal_of_load(p), SIGSEGV, "the page that a child is not to have");
		verify(p + page, page, 2, page, "the other page in a child");
		_exit(0);
	}
	join(pid);
	verify(p, 2 * page, 2, 0, "the parent's mapping");
}

void point_advice_remote(void)
{
	uint8_t *p = touched(2);
	struct iovec part = { p, 2 * page };
	pid_t pid = victim();
	int pidfd = syscall(SYS_pidfd_open, pid, 0);

	CHECK(pidfd >= 0, "pidfd_open: %m");
	CHECK(syscall(SYS_process_madvise, pidfd, &part, 1, MADV_PAGEOUT, 0) == (long)(2 * page),
	      "process_madvise: %m");
	verify(p, 2 * page, 2, 0, "the mapping");
}

static uint64_t pagemap(const void *p)
{
	return proc_entry("/proc/self/pagemap", (uintptr_t)p / page);
}

/* Who reads page flags meets frames of pmem: it must get an answer, and no page of another kind. */
void point_page_flags(void)
{
	enum { KPF_LRU = 5, KPF_BUDDY = 10, KPF_ANON = 12, KPF_NOPAGE = 20 };
	const uint64_t never = 1ull << KPF_LRU | 1ull << KPF_BUDDY | 1ull << KPF_ANON;
	uint8_t *p = touched(1);
	const uint64_t pfn = pagemap(p) & PAGEMAP_PFN;
	uint64_t flags = proc_entry("/proc/kpageflags", pfn);
	uint64_t count = proc_entry("/proc/kpagecount", pfn);

	CHECK(pfn, "pagemap has no frame number: this must run as root");
	CHECK(!(flags & never), "/proc/kpageflags is %llx: the page counts as one of RAM",
	      (unsigned long long)flags);
	/* As on other architectures: these files know of no page of a device. */
	CHECK(!flags || flags & 1ull << KPF_NOPAGE || count == 1,
	      "/proc/kpageflags is %llx, /proc/kpagecount %llu", (unsigned long long)flags,
	      (unsigned long long)count);
}

void point_pagemap_kind(void)
{
	int dax = create_filled("dax", 4 * page, 1);
	uint8_t *shared = map_shared(dax, 4 * page), *mine = map_private(dax, 4 * page);
	uint64_t entry;

	CHECK(!(pagemap(shared) & PAGEMAP_PRESENT), "an untouched page is present");
	shared[0] = 1;
	entry = pagemap(shared);
	CHECK(entry & PAGEMAP_PRESENT && entry & PAGEMAP_FILE,
	      "pagemap of a shared page is %llx: not a present page of a file",
	      (unsigned long long)entry);
	(void)*(volatile uint8_t *)mine;
	CHECK((pagemap(mine) & PAGEMAP_PFN) == (entry & PAGEMAP_PFN),
	      "the uncopied private page has another frame");
	mine[0] = 2;
	entry = pagemap(mine);
	CHECK(entry & PAGEMAP_PRESENT && !(entry & PAGEMAP_FILE),
	      "pagemap of a private copy is %llx: not an anonymous page",
	      (unsigned long long)entry);
}

/* A value in KiB of the mapping at p, from /proc/self/smaps */
static long smaps_kib(const void *p, const char *key)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[256];
	const size_t len = strlen(key);
	unsigned long start, end;
	bool ours = false;
	long value = -1;

	CHECK(smaps, "/proc/self/smaps: %m");
	while (value < 0 && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start == (uintptr_t)p;
		else if (ours && !strncmp(line, key, len) && line[len] == ':')
			value = atol(line + len + 1);
	}
	fclose(smaps);
	CHECK(value >= 0, "/proc/self/smaps has no %s of the mapping", key);
	return value;
}

static void check_kib(const void *p, const char *key, long pages)
{
	const long kib = smaps_kib(p, key);

	CHECK(kib == pages * (long)page / 1024, "smaps: %s is %ld KiB, expected %ld", key, kib,
	      pages * (long)page / 1024);
}

static void check_shared_smaps(const uint8_t *p, struct baton *b)
{
	baton_await_parent(b);
	(void)*(const volatile uint8_t *)p;
	(void)*(const volatile uint8_t *)(p + page);
	baton_to_parent(b);
	baton_await_parent(b);
}

/* Pages of DAX files count as any file's pages: present, shared, dirty. */
void point_smaps_counts(void)
{
	int dax = create_filled("dax", 8 * page, 1);
	uint8_t *p = map_shared(dax, 8 * page), *mine = map_private(dax, 8 * page);
	struct baton b;
	pid_t pid;

	check_kib(p, "Rss", 0);
	(void)*(volatile uint8_t *)p;
	p[page] = 1;
	(void)*(volatile uint8_t *)(p + 2 * page);
	check_kib(p, "Rss", 3);
	check_kib(p, "Pss", 3);
	/* A page of a DAX file may count as dirty for what an earlier file did in it. */
	CHECK(smaps_kib(p, "Private_Dirty") >= (long)page / 1024, "no page is dirty after a store");
	CHECK(smaps_kib(p, "Private_Dirty") + smaps_kib(p, "Private_Clean") ==
	      3 * (long)page / 1024, "three pages are mapped here alone, smaps has %ld KiB",
	      smaps_kib(p, "Private_Dirty") + smaps_kib(p, "Private_Clean"));
	check_kib(p, "Anonymous", 0);
	mine[4 * page] = 1;
	(void)*(volatile uint8_t *)(mine + 5 * page);
	check_kib(mine, "Rss", 2);
	check_kib(mine, "Anonymous", 1);

	baton_make(&b);
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		check_shared_smaps(p, &b);
		_exit(0);
	}
	baton_to_child(&b);
	baton_await_child(&b);
	check_kib(p, "Rss", 3);
	check_kib(p, "Pss", 2);
	CHECK(smaps_kib(p, "Shared_Dirty") + smaps_kib(p, "Shared_Clean") ==
	      2 * (long)page / 1024, "two pages are in two processes, smaps has %ld KiB as shared",
	      smaps_kib(p, "Shared_Dirty") + smaps_kib(p, "Shared_Clean"));
	baton_to_child(&b);
	join(pid);
	CHECK(!munmap(p + page, page), "munmap: %m");
	check_kib(p, "Rss", 1);
	resize(dax, 0);
	check_kib(p, "Rss", 0);
	check_kib(mine, "Rss", 0);
}

/* Of the whole process: VmRSS goes up and down with the pages. */
static long rss_file_pages(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[256];
	long kib = -1;

	CHECK(status, "/proc/self/status: %m");
	while (kib < 0 && fgets(line, sizeof(line), status))
		sscanf(line, "RssFile: %ld", &kib);
	fclose(status);
	CHECK(kib >= 0, "/proc/self/status has no RssFile");
	return kib * 1024 / (long)page;
}

void point_rss_counts(void)
{
	enum { PAGES = 512, SLACK = 64 };	/* the kernel counts in batches for each processor */
	int dax = create_filled("dax", PAGES * page, 1);
	uint8_t *p = map_shared(dax, PAGES * page);
	const long before = rss_file_pages();
	long with;

	verify(p, PAGES * page, 1, 0, "the mapping");
	with = rss_file_pages() - before;
	CHECK(with > PAGES - SLACK && with < PAGES + SLACK, "%d pages count as %ld", PAGES, with);
	CHECK(!munmap(p, PAGES * page), "munmap: %m");
	with = rss_file_pages() - before;
	CHECK(labs(with) < SLACK, "after munmap %ld pages are still counted", with);
}

void point_mincore_pages(void)
{
	enum { PAGES = 8 };
	int dax = create_filled("dax", PAGES * page, 1);
	uint8_t *p = map_shared(dax, PAGES * page), in_core[PAGES];

	(void)*(volatile uint8_t *)(p + page);
	p[3 * page] = 1;
	CHECK(!mincore(p, PAGES * page, in_core), "mincore: %m");
	CHECK(in_core[1] & 1 && in_core[3] & 1, "touched pages are not in core");
	CHECK(!mincore(map_private(dax, PAGES * page), PAGES * page, in_core), "mincore: %m");
}

/*
 * cachestat(2) came with 6.5: there is no page cache, so nothing in it. The last two values are
 * not looked at: it takes the entries of DAX for those of evicted pages, on all architectures.
 */
void point_cachestat(void)
{
	const uint64_t range[2] = { 0, 4 * page };
	uint64_t stat[5] = { 9, 9, 9, 9, 9 };
	uint8_t *p = touched(4);
	int dax = open(in_dir(point_dir, "dax"), O_RDWR), i;

	if (!kernel_is_at_least(6, 5))
		return;
	CHECK(!syscall(SYS_cachestat, dax, range, stat, 0),
	      "cachestat: %m (CONFIG_CACHESTAT_SYSCALL)");
	for (i = 0; i < 3; i++)
		CHECK(!stat[i], "cachestat: value %d is %llu pages", i,
		      (unsigned long long)stat[i]);
	verify(p, 4 * page, 2, 0, "the mapping");
}

/* Faults of a file system's mapping are not handed to user space, on no architecture. */
void point_userfault_refused(void)
{
	uint8_t *p = touched(1), *plain = aligned_buffer(page);
	uint8_t *mine = map_again("dax", page, MAP_PRIVATE);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	CHECK(fd >= 0, "userfaultfd: %m (CONFIG_USERFAULTFD)");
	CHECK(!ioctl(fd, UFFDIO_API, &api), "UFFDIO_API: %m");
	range.range.start = (uintptr_t)plain;
	range.range.len = page;
	CHECK(!ioctl(fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER of ordinary memory: %m");
	range.range.start = (uintptr_t)p;
	CHECK_ERRNO(ioctl(fd, UFFDIO_REGISTER, &range), EINVAL);
	range.range.start = (uintptr_t)mine;
	CHECK_ERRNO(ioctl(fd, UFFDIO_REGISTER, &range), EINVAL);
	verify(p, page, 2, 0, "the mapping");
}
