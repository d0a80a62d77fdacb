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

static void prepare_to_dump(const char *filter)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int fd;

	CHECK(!setrlimit(RLIMIT_CORE, &unlimited), "RLIMIT_CORE: %m");
	CHECK(!prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE: %m");
	CHECK(!chdir(plain_dir), "chdir %s: %m", plain_dir);
	if (!filter)
		return;
	fd = open("/proc/self/coredump_filter", O_WRONLY);
	CHECK(fd >= 0 && write(fd, filter, strlen(filter)) > 0, "coredump_filter: %m");
	close(fd);
}

static void die_with_core(void *arg)
{
	const struct dump *dump = arg;

	prepare_to_dump(dump->filter);
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

/* The pattern must name a file in the working directory, as the kernel's own default does. */
static void check_core_pattern(void)
{
	char pattern[128] = "";
	int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);

	CHECK(fd >= 0 && read(fd, pattern, sizeof(pattern) - 1) > 0, "core_pattern: %m");
	close(fd);
	CHECK(pattern[0] != '|' && !strchr(pattern, '/'),
	      "kernel.core_pattern must be a plain file name, it is %s", pattern);
}

/* The core file of a child that aborts. */
static int core_of(pid_t pid)
{
	int fd, status;

	CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
	if (WIFEXITED(status))
		_exit(1);	/* it has given its reason */
	CHECK(WTERMSIG(status) == SIGABRT, "the child died: %s", strsignal(WTERMSIG(status)));
	CHECK(WCOREDUMP(status), "the kernel wrote no core file");
	fd = open_core();
	CHECK(fd >= 0, "there is no core file in the child's directory: %m");
	return fd;
}

static int dump_core(const char *filter)
{
	struct dump dump = { filter };

	check_core_pattern();
	return core_of(start(die_with_core, &dump));
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
static uint8_t *map_apart(int fd, int flags)
{
	uint8_t *base = reserve(4 * page, page), *p;

	p = mmap(base + page, 2 * page, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	CHECK(p != MAP_FAILED, "mmap: %m");
	return p;
}

static uint8_t *mapping_to_dump(int flags)
{
	uint8_t *p = map_apart(create_filled("dax", 2 * page, 1), flags);

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

/* What the bits of the filter are for: the kinds of memory, in their order */
enum { DAX_PRIVATE_BIT = 7, DAX_SHARED_BIT = 8, FILTER_BITS = 9 };

/*
 * A segment is there as a whole where the filter asks for it. Where it does not, the kernel may leave
 * the mapping out, or dump what became ordinary memory; wrong bytes are wrong in each case.
 */
static void verify_segment(int core, const void *p, bool asked, unsigned int seed, const char *what)
{
	const ElfW(Phdr) segment = segment_of(core, p);
	uint8_t *data;

	CHECK(segment.p_memsz == 2 * page, "%s: the segment has %lu bytes", what,
	      (unsigned long)segment.p_memsz);
	CHECK(segment.p_filesz || !asked, "%s: asked for, it is not in the core file", what);
	if (!segment.p_filesz)
		return;
	data = malloc(segment.p_filesz);
	CHECK(data, "no memory");
	get(core, data, segment.p_filesz, segment.p_offset);
	verify(data, segment.p_filesz, seed, 0, what);
	free(data);
}

static void remove_core(void)
{
	DIR *dir = opendir(plain_dir);
	struct dirent *entry;

	CHECK(dir, "opendir %s: %m", plain_dir);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			CHECK(!unlink(in_dir(plain_dir, entry->d_name)), "unlink: %m");
	closedir(dir);
}

/* Each bit alone; the pages are stored to, read, and not touched at all. */
void point_core_each_bit(void)
{
	int dax = create_filled("dax", 2 * page, 1), other = create_filled("other", 2 * page, 4);
	uint8_t *shared = map_apart(dax, MAP_SHARED), *copied = map_apart(other, MAP_PRIVATE);
	uint8_t *uncopied = map_apart(other, MAP_PRIVATE);
	uint8_t *untouched = map_apart(other, MAP_SHARED);
	char filter[8];
	int bit, core;

	fill(shared, 2 * page, 2, 0);
	fill(copied, page, 3, 0);
	fill(copied + page, page, 3, page);
	verify(uncopied, page, 4, 0, "the private mapping");
	for (bit = 0; bit < FILTER_BITS; bit++) {
		snprintf(filter, sizeof(filter), "0x%x", 1 << bit);
		core = dump_core(filter);
		verify_segment(core, shared, bit == DAX_SHARED_BIT, 2, "a shared mapping");
		verify_segment(core, untouched, bit == DAX_SHARED_BIT, 4, "an untouched one");
		verify_segment(core, copied, bit == DAX_PRIVATE_BIT, 3, "private copies");
		verify_segment(core, uncopied, bit == DAX_PRIVATE_BIT, 4, "uncopied pages");
		close(core);
		remove_core();
	}
	verify(shared, 2 * page, 2, 0, "the shared mapping itself");
	verify_file(other, 2 * page, 4, 0, "the privately mapped file");
}

void point_core_shared_hole(void)
{
	int dax = create_hole("dax", 2 * page), core;
	uint8_t *p = map_apart(dax, MAP_SHARED);
	ElfW(Phdr) segment;

	core = dump_core(DUMP_ALL);
	segment = segment_of(core, p);
	CHECK(segment.p_memsz == 2 * page, "the segment has %lu bytes",
	      (unsigned long)segment.p_memsz);
	verify_segment_zero(core, &segment);
	CHECK(!blocks_of(dax), "the hole has blocks now");
}

/* Of a program that runs from the file system: initialised, so in the file, and then stored to. */
static uint8_t crash_data[3 * 4096] = { 1 };

int helper_crash(const long *numbers)
{
	fill(crash_data, sizeof(crash_data), numbers[0], 0);
	abort();
}

/* The bytes of the core file that were at p. */
static void read_core(int core, const void *p, void *data, size_t len)
{
	ElfW(Ehdr) elf;
	ElfW(Phdr) segment;
	size_t at;
	int i;

	get(core, &elf, sizeof(elf), 0);
	for (i = 0; i < elf.e_phnum; i++) {
		get(core, &segment, sizeof(segment), elf.e_phoff + i * sizeof(segment));
		at = (uintptr_t)p - segment.p_vaddr;
		if (segment.p_type != PT_LOAD || (uintptr_t)p < segment.p_vaddr ||
		    at + len > segment.p_memsz)
			continue;
		CHECK(at + len <= segment.p_filesz, "%p is in a segment that was left out", p);
		get(core, data, len, segment.p_offset + at);
		return;
	}
	fail("no segment of the core file has %p", p);
}

void point_core_of_program(void)
{
	const uint8_t *text = (const uint8_t *)((uintptr_t)helper_crash & ~(uintptr_t)(page - 1));
	uint8_t *data = aligned_buffer(sizeof(crash_data));
	const char *program = copy_myself("program");
	int core;

	check_core_pattern();
	prepare_to_dump(DUMP_ALL);
	core = core_of(start_helper(program, "crash", 1, (const long[]){ 6 }));
	read_core(core, crash_data, data, sizeof(crash_data));
	verify(data, sizeof(crash_data), 6, 0, "the program's data in the core file");
	read_core(core, text, data, page);
	CHECK(!memcmp(data, text, page), "the program's text is wrong in the core file");
}
