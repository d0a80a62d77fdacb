// SPDX-License-Identifier: GPL-2.0-only
/* Group core: what the core dump of a process says of its mappings. */
#include <dirent.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

/* Bits of /proc/PID/coredump_filter: everything, private and shared DAX mappings included. */
#define DUMP_ALL "0x1ff"

struct dump {
	const char *filter;	/* NULL: the kernel's default */
};

static void die_with_core(void *arg)
{
	const struct dump *dump = arg;
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int fd;

	CHECK(!setrlimit(RLIMIT_CORE, &unlimited), "RLIMIT_CORE: %m");
	CHECK(!prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE: %m");
	CHECK(!chdir(plain_dir), "chdir %s: %m", plain_dir);
	if (dump->filter) {
		fd = open("/proc/self/coredump_filter", O_WRONLY);
		CHECK(fd >= 0 && write(fd, dump->filter, strlen(dump->filter)) > 0,
		      "coredump_filter: %m");
	}
	abort();
}

/* The one file in the directory that the child died in. */
static int open_core(void)
{
	DIR *dir = opendir(plain_dir);
	struct dirent *entry;
	int fd = -1;

	CHECK(dir, "opendir %s: %m", plain_dir);
	while (fd < 0 && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			fd = open(in_dir(plain_dir, entry->d_name), O_RDONLY);
	closedir(dir);
	return fd;
}

/*
 * Dumps a child and returns its core file. The pattern must name a file in the working directory,
 * as the kernel's own default does.
 */
static int dump_core(const char *filter)
{
	struct dump dump = { filter };
	char pattern[128] = "";
	int fd, status;
	pid_t pid;

	fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);
	CHECK(fd >= 0 && read(fd, pattern, sizeof(pattern) - 1) > 0, "core_pattern: %m");
	close(fd);
	CHECK(pattern[0] != '|' && !strchr(pattern, '/'),
	      "kernel.core_pattern must be a plain file name, it is %s", pattern);

	pid = start(die_with_core, &dump);
	CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
	if (WIFEXITED(status))
		_exit(1);	/* it has given its reason */
	CHECK(WTERMSIG(status) == SIGABRT, "the child died: %s", strsignal(WTERMSIG(status)));
	CHECK(WCOREDUMP(status), "the kernel wrote no core file");
	fd = open_core();
	CHECK(fd >= 0, "there is no core file in the child's directory: %m");
	return fd;
}

/* The segment of the core file that describes the mapping at p. */
static ElfW(Phdr) segment_of(int core, const void *p)
{
	ElfW(Ehdr) elf;
	ElfW(Phdr) segment;
	int i;

	get(core, &elf, sizeof(elf), 0);
	CHECK(!memcmp(elf.e_ident, ELFMAG, SELFMAG) && elf.e_type == ET_CORE, "no ELF core file");
	for (i = 0; i < elf.e_phnum; i++) {
		get(core, &segment, sizeof(segment), elf.e_phoff + i * sizeof(segment));
		if (segment.p_type == PT_LOAD && segment.p_vaddr == (uintptr_t)p)
			return segment;
	}
	fail("no segment of the core file begins at the mapping (%d segments)", elf.e_phnum);
}

static void verify_segment_zero(int core, const ElfW(Phdr) *segment)
{
	uint8_t *data = malloc(segment->p_filesz);

	CHECK(data, "no memory");
	get(core, data, segment->p_filesz, segment->p_offset);
	verify_zero(data, segment->p_filesz, "the mapping in the core file");
	free(data);
}

/* A mapping with a gap on both sides, so that the segment in the core file is just this one. */
static uint8_t *mapping_to_dump(int flags)
{
	int fd = create_filled("dax", 2 * page, 1);
	uint8_t *base = reserve(4 * page, page), *p;

	p = mmap(base + page, 2 * page, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	CHECK(p != MAP_FAILED, "mmap: %m");
	fill(p, 2 * page, 2, 0);
	return p;
}

void point_core_default(void)
{
	uint8_t *p = mapping_to_dump(MAP_SHARED), *plain = aligned_buffer(page), data[100];
	ElfW(Phdr) segment;
	int core;

	CHECK(file_is_dax(open(in_dir(point_dir, "dax"), O_RDONLY)),
	      "not in DAX mode: by default no shared file is dumped");
	fill(plain, page, 5, 0);
	core = dump_core(NULL);
	segment = segment_of(core, p);
	CHECK(segment.p_memsz == 2 * page, "the segment has %lu bytes",
	      (unsigned long)segment.p_memsz);
	verify_segment_zero(core, &segment);
	segment = segment_of(core, plain);
	get(core, data, sizeof(data), segment.p_offset);
	verify(data, sizeof(data), 5, 0, "ordinary memory in the core file");
	verify(p, 2 * page, 2, 0, "the mapping itself");
}

void point_core_all(void)
{
	uint8_t *p = mapping_to_dump(MAP_SHARED);
	int core = dump_core(DUMP_ALL);
	ElfW(Phdr) segment = segment_of(core, p);

	CHECK(segment.p_filesz == 2 * page, "asked for DAX mappings, the segment has %lu bytes",
	      (unsigned long)segment.p_filesz);
	verify_segment_zero(core, &segment);
	verify(p, 2 * page, 2, 0, "the mapping itself");
}

void point_core_private_copy(void)
{
	uint8_t *p = mapping_to_dump(MAP_PRIVATE), data[100];
	int core = dump_core(DUMP_ALL);
	ElfW(Phdr) segment = segment_of(core, p);

	CHECK(segment.p_filesz == 2 * page, "asked for DAX mappings, the segment has %lu bytes",
	      (unsigned long)segment.p_filesz);
	get(core, data, sizeof(data), segment.p_offset + page);
	verify(data, sizeof(data), 2, page, "a private copy in the core file");
}
