// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group remote: what another process reads and writes, as debuggers and tracers do: process_vm_readv,
 * /proc/PID/mem, ptrace. The writer of a private page must not be a fork of its owner: that has the
 * same bytes at the same address, and hides a copy which was taken from the wrong process.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

/* Where the program that is looked into has its mapping, and nobody else anything */
#define PLACE ((uint8_t *)0x50000000)
/* The word that is written there, and where in the page */
#define WORD 0x12345678l
#define WORD_AT 16

enum { BY_VM, BY_MEM, BY_PTRACE };

static int open_mem(pid_t pid)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0, "%s: %m", path);
	return fd;
}

void point_remote_vm(void)
{
	uint8_t *p = touched(3), *data = aligned_buffer(3 * page);
	pid_t pid = victim();

	CHECK(vm_copy(pid, data, p, 3 * page, false) == (ssize_t)(3 * page),
	      "process_vm_readv: %m");
	verify(data, 3 * page, 2, 0, "what process_vm_readv read");
	fill(data, page, 3, 100);
	CHECK(vm_copy(pid, data, p + 100, page, true) == (ssize_t)page, "process_vm_writev: %m");
	verify(p, 100, 2, 0, "the bytes before");
	verify(p + 100, page, 3, 100, "what process_vm_writev wrote");
	verify(p + 100 + page, 2 * page - 100, 2, 100 + page, "the bytes behind");
	verify_named("dax", 100, 2, 0, "the file");
	/* Both sides in DAX */
	CHECK(vm_copy(pid, p + 2 * page, p, page, false) == (ssize_t)page,
	      "process_vm_readv into a mapping: %m");
	verify(p + 2 * page + 100, page - 100, 3, 100, "the mapping");
}

/* The owner has not touched its pages, and some are a hole. */
void point_remote_vm_untouched(void)
{
	int dax = create_hole("dax", 4 * page);
	uint8_t *p, *data = aligned_buffer(2 * page);
	const blkcnt_t before = blocks_of(dax);
	pid_t pid;

	fill(data, page, 1, 0);
	put(dax, data, page, 0);
	p = map_shared(dax, 4 * page);
	pid = victim();
	CHECK(vm_copy(pid, data, p, 2 * page, false) == (ssize_t)(2 * page),
	      "process_vm_readv: %m");
	verify(data, page, 1, 0, "the untouched page");
	verify_zero(data + page, page, "the hole");
	CHECK(blocks_of(dax) == before + (blkcnt_t)(page / 512), "a hole that was read has blocks");
	fill(data, page, 3, 2 * page);
	CHECK(vm_copy(pid, data, p + 2 * page, page, true) == (ssize_t)page,
	      "process_vm_writev into a hole: %m");
	verify(p + 2 * page, page, 3, 2 * page, "the hole after the write");
	verify_zero(p + 3 * page, page, "the page behind");
	CHECK(!ftruncate(dax, page), "ftruncate: %m");
	CHECK_ERRNO(vm_copy(pid, data, p + 2 * page, page, false), EFAULT);
}

void point_remote_mem(void)
{
	uint8_t *p = touched(2), data[300];
	pid_t pid = victim();
	int mem = open_mem(pid);

	get(mem, data, sizeof(data), (uintptr_t)(p + page - 100));
	verify(data, sizeof(data), 2, page - 100, "/proc/PID/mem");
	fill(data, sizeof(data), 3, page - 100);
	put(mem, data, sizeof(data), (uintptr_t)(p + page - 100));
	verify(p, page - 100, 2, 0, "the bytes before");
	verify(p + page - 100, sizeof(data), 3, page - 100, "what was written to /proc/PID/mem");
	verify(p + page + 200, page - 200, 2, page + 200, "the bytes behind");
	CHECK(!msync(p, 2 * page, MS_SYNC), "msync: %m");
	close(mem);
	mem = open_mem(getpid());
	get(mem, data, sizeof(data), (uintptr_t)p);
	verify(data, sizeof(data), 2, 0, "/proc/self/mem");
}

void point_remote_mem_read_only(void)
{
	int dax = create_filled("dax", page, 1);
	uint8_t *p = map(dax, page, PROT_READ, MAP_SHARED, 0), data[8];
	int mem = open_mem(getpid());

	get(mem, data, sizeof(data), (uintptr_t)p);
	verify(data, sizeof(data), 1, 0, "/proc/self/mem");
	CHECK_ERRNO(pwrite(mem, "12345678", 8, (uintptr_t)p), EIO);
	verify_file(dax, page, 1, 0, "the file");
}

void point_remote_ptrace(void)
{
	uint8_t *p = touched(1);
	long want, got;
	pid_t pid = traced_victim();

	memcpy(&want, p + 64, sizeof(want));
	got = peek(pid, p + 64);
	CHECK(!errno && got == want, "PTRACE_PEEKDATA: %m");
	CHECK(!ptrace(PTRACE_POKEDATA, pid, p + 64, (void *)WORD), "PTRACE_POKEDATA: %m");
	memcpy(&got, p + 64, sizeof(got));
	CHECK(got == WORD, "the mapping has %lx after the poke", got);
	verify(p, 64, 2, 0, "the bytes before");
	verify(p + 64 + sizeof(got), page - 64 - sizeof(got), 2, 64 + sizeof(got),
	       "the bytes behind");
	verify_named("dax", 64, 2, 0, "the file");
}

/* Private pages, copied and uncopied, are read from outside; the uncopied ones show the file. */
void point_remote_private_read(void)
{
	int dax = create_filled("dax", 3 * page, 1);
	uint8_t *p = map_private(dax, 3 * page), *data = aligned_buffer(3 * page);
	long word, got;
	pid_t pid;

	fill(p, page, 2, 0);
	(void)*(volatile uint8_t *)(p + page);
	pid = traced_victim();
	CHECK(vm_copy(pid, data, p, 3 * page, false) == (ssize_t)(3 * page),
	      "process_vm_readv: %m");
	verify(data, page, 2, 0, "the copied page");
	verify(data + page, 2 * page, 1, page, "the pages that are not copied");
	memset(data, 0, 3 * page);
	get(open_mem(pid), data, 3 * page, (uintptr_t)p);
	verify(data, page, 2, 0, "the copied page by /proc/PID/mem");
	verify(data + page, 2 * page, 1, page, "the others by /proc/PID/mem");
	memcpy(&word, p + 2 * page + 8, sizeof(word));
	got = peek(pid, p + 2 * page + 8);
	CHECK(!errno && got == word, "PTRACE_PEEKDATA of an uncopied page: %m");
}

/* In a program of its own: maps the file, reads the page, is written to, and looks at the rest. */
int helper_victim(const long *numbers)
{
	const int file = numbers[0], from_parent = numbers[1], to_parent = numbers[2];
	uint8_t *p = mmap(PLACE, page, numbers[3], MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 0);
	long word;
	char c;

	CHECK(p == PLACE, "mmap at %p: %m", (void *)PLACE);
	verify(p, page, 1, 0, "the private page before the write");
	CHECK(write(to_parent, "", 1) == 1, "write: %m");
	CHECK(read(from_parent, &c, 1) == 1, "the writer went away");
	memcpy(&word, p + WORD_AT, sizeof(word));
	CHECK(word == WORD, "the written word is %lx", word);
	verify(p, WORD_AT, 1, 0, "the bytes before the written word");
	verify(p + WORD_AT + sizeof(word), page - WORD_AT - sizeof(word), 1,
	       WORD_AT + sizeof(word), "the bytes behind the written word");
	return 0;
}

static void write_word(pid_t pid, int how)
{
	long word = WORD;
	int status;

	if (how == BY_VM) {
		CHECK(vm_copy(pid, &word, PLACE + WORD_AT, sizeof(word), true) == sizeof(word),
		      "process_vm_writev: %m");
	} else if (how == BY_MEM) {
		put(open_mem(pid), &word, sizeof(word), (uintptr_t)(PLACE + WORD_AT));
	} else {
		CHECK(!ptrace(PTRACE_ATTACH, pid, NULL, NULL), "PTRACE_ATTACH: %m");
		CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status), "it did not stop");
		CHECK(!ptrace(PTRACE_POKEDATA, pid, PLACE + WORD_AT, (void *)word),
		      "PTRACE_POKEDATA: %m");
		CHECK(!ptrace(PTRACE_DETACH, pid, NULL, NULL), "PTRACE_DETACH: %m");
	}
}

static void write_from_outside(int how, int prot)
{
	int dax = create_filled("dax", page, 1), file = dup(dax), other;
	struct baton b;
	uint8_t *p;
	pid_t pid;

	for (other = 0; other < 2; other++) {
		baton_make(&b);
		pid = start_helper("/proc/self/exe", "victim", 4,
				   (const long[]){ file, b.to_child[0], b.to_parent[1], prot });
		close(b.to_parent[1]);
		baton_await_child(&b);
		if (other) {	/* the writer has something else there */
			p = mmap(PLACE, page, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			CHECK(p == PLACE, "mmap at %p: %m", (void *)PLACE);
			fill(p, page, 9, 0);
		}
		write_word(pid, how);
		baton_to_child(&b);
		join(pid);
		if (other)
			verify(PLACE, page, 9, 0, "the writer's own memory");
		verify_file(dax, page, 1, 0, "the file");
	}
}

void point_remote_write_by_vm(void)
{
	write_from_outside(BY_VM, PROT_READ | PROT_WRITE);
}

void point_remote_write_by_mem(void)
{
	write_from_outside(BY_MEM, PROT_READ | PROT_WRITE);
}

void point_remote_write_by_ptrace(void)
{
	write_from_outside(BY_PTRACE, PROT_READ | PROT_WRITE);
}

/* Into what its owner may only read and execute, as a debugger does */
void point_remote_write_text(void)
{
	write_from_outside(BY_PTRACE, PROT_READ | PROT_EXEC);
}

static __attribute__((noinline, noclone)) int breakpoint_target(int n)
{
	__asm__ volatile("" : "+r"(n));
	return n + 1;
}

int helper_breakpoint(const long *numbers)
{
	CHECK(!ptrace(PTRACE_TRACEME, 0, NULL, NULL), "PTRACE_TRACEME: %m");
	raise(SIGSTOP);
	return breakpoint_target(numbers[0]);
}

/* The instruction that debuggers plant, at any address: in front of it, what a word has there. */
static long with_breakpoint(long word, uintptr_t address)
{
#if defined(__arm__)
	const uint32_t arm = 0xe7f001f0;
	const uint16_t thumb = 0xde01;
	uint8_t *bytes = (uint8_t *)&word;

	if (address & 1)
		memcpy(bytes + (address & 2), &thumb, sizeof(thumb));
	else
		memcpy(bytes, &arm, sizeof(arm));
#else
	((uint8_t *)&word)[address % sizeof(word)] = 0xcc;
#endif
	return word;
}

/* Where a program stands when it has met one; it is put back onto the instruction. */
static uintptr_t take_back(pid_t pid)
{
#if defined(__arm__)
	struct user_regs regs;

	CHECK(!ptrace(PTRACE_GETREGS, pid, NULL, &regs), "PTRACE_GETREGS: %m");
	return regs.uregs[15];
#else
	struct user_regs_struct regs;

	CHECK(!ptrace(PTRACE_GETREGS, pid, NULL, &regs), "PTRACE_GETREGS: %m");
	regs.rip--;
	CHECK(!ptrace(PTRACE_SETREGS, pid, NULL, &regs), "PTRACE_SETREGS: %m");
	return regs.rip;
#endif
}

static void await_stop(pid_t pid, int signal)
{
	int status;

	CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
	CHECK(WIFSTOPPED(status), "the program did not stop (status 0x%x)", status);
	CHECK(WSTOPSIG(status) == signal, "the program stopped by %s, expected: %s",
	      strsignal(WSTOPSIG(status)), strsignal(signal));
}

/* The page of the program's text that holds the address, but for one word, is as in this process. */
static void verify_text(pid_t pid, uintptr_t word_at, long word)
{
	const uintptr_t start = word_at & ~(uintptr_t)(page - 1);
	uint8_t *data = aligned_buffer(page), *want = aligned_buffer(page);

	memcpy(want, (void *)start, page);
	memcpy(want + (word_at - start), &word, sizeof(word));
	get(open_mem(pid), data, page, start);
	CHECK(!memcmp(data, want, page), "the program's text is wrong in the breakpoint's page");
}

/* A software breakpoint in a program that runs from the file system: met, removed, gone on. */
void point_remote_breakpoint(void)
{
	const uintptr_t target = (uintptr_t)breakpoint_target;
	const uintptr_t word_at = target & ~(uintptr_t)(sizeof(long) - 1);
	const char *program = copy_myself("program");
	int round, status;
	long word, got;
	pid_t pid;

	copy_myself("reference");
	memcpy(&word, (void *)word_at, sizeof(word));
	for (round = 0; round < 3; round++) {
		program = in_dir(point_dir, "program");
		pid = start_helper(program, "breakpoint", 1, (const long[]){ 40 + round });
		await_stop(pid, SIGSTOP);
		got = peek(pid, (void *)word_at);
		CHECK(!errno, "PTRACE_PEEKTEXT: %m");
		CHECK(got == word, "the program's text is %lx, expected %lx", got, word);
		CHECK(!ptrace(PTRACE_POKETEXT, pid, (void *)word_at,
			      (void *)with_breakpoint(word, target)), "PTRACE_POKETEXT: %m");
		verify_text(pid, word_at, with_breakpoint(word, target));
		CHECK(!ptrace(PTRACE_CONT, pid, NULL, NULL), "PTRACE_CONT: %m");
		await_stop(pid, SIGTRAP);
		got = take_back(pid);
		CHECK((uintptr_t)got == (target & ~(uintptr_t)1), "it stopped at %lx, expected %lx",
		      got, (long)target);
		CHECK(!ptrace(PTRACE_POKETEXT, pid, (void *)word_at, (void *)word),
		      "PTRACE_POKETEXT: %m");
		verify_text(pid, word_at, word);
		CHECK(!ptrace(PTRACE_CONT, pid, NULL, NULL), "PTRACE_CONT: %m");
		CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 41 + round,
		      "the program ended with status 0x%x", status);
	}
	verify_same("program", "reference", "the program's file has changed");
}
