// SPDX-License-Identifier: GPL-2.0-only
/* Group exec: programs and freshly written code that run from the file system under test. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

/* A copy of this program shows by these that its sections arrived: filled, and zero. */
static uint8_t data_section[10000] = { [0] = 0x5a, [4096] = 0xa5, [9999] = 0x77 };
static uint8_t bss_section[10000];

int selftest(int token)
{
	bool data_ok = data_section[0] == 0x5a && data_section[4096] == 0xa5 &&
		data_section[9999] == 0x77 && !data_section[1];
	size_t i;

	for (i = 0; i < sizeof(bss_section); i++)
		data_ok = data_ok && !bss_section[i];
	fill(data_section, sizeof(data_section), 1, 0);
	fill(bss_section, sizeof(bss_section), 2, 0);
	verify(data_section, sizeof(data_section), 1, 0, "the data section after stores");
	verify(bss_section, sizeof(bss_section), 2, 0, "the bss section after stores");
	return data_ok ? token : 1;
}

static int run_copy(const char *name, int token)
{
	const char *path = in_dir(point_dir, name);
	char text[16];
	int status;
	pid_t pid;

	snprintf(text, sizeof(text), "%d", token);
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		execl(path, path, "--selftest", text, NULL);
		fail("execl %s: %m", path);
	}
	CHECK(waitpid(pid, &status, 0) == pid, "waitpid: %m");
	CHECK(!WIFSIGNALED(status), "the program on the mount died: %s",
	      strsignal(WTERMSIG(status)));
	return WEXITSTATUS(status);
}

void point_exec_program(void)
{
	int token, code;

	copy_myself("program");
	for (token = 40; token < 45; token++) {
		code = run_copy("program", token);
		CHECK(code == token, "the program's exit status is %d, expected %d", code, token);
	}
}

/* The sections that a program writes to are private: the next run finds them as they were. */
void point_exec_leaves_file(void)
{
	int i;

	copy_myself("program");
	copy_myself("reference");
	for (i = 0; i < 3; i++)
		CHECK(run_copy("program", 7) == 7, "run %d of the program failed", i);
	verify_same("program", "reference", "the program's file has changed by running it");
}

void point_exec_text_busy(void)
{
	int ends[2], fd;
	pid_t pid;
	char c;

	copy_myself("program");
	CHECK(!pipe(ends), "pipe: %m");
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {	/* busy for long, and says when it has begun */
		dup2(ends[1], STDOUT_FILENO);
		execl(in_dir(point_dir, "program"), "daxprobe", "--writer",
		      in_dir(point_dir, "records"), "1000000", NULL);
		fail("execl: %m");
	}
	close(ends[1]);
	CHECK(read(ends[0], &c, 1) == 1, "the program said nothing");
	fd = open(in_dir(point_dir, "program"), O_WRONLY);
	CHECK_ERRNO(fd, ETXTBSY);
	kill(pid, SIGKILL);
	CHECK(waitpid(pid, NULL, 0) == pid, "waitpid: %m");
	fd = open(in_dir(point_dir, "program"), O_WRONLY);
	CHECK(fd >= 0, "open for writing once the program has ended: %m");
}

/* A function that returns n: its instructions. */
size_t make_code(uint8_t *code, uint8_t n)
{
#if defined(__arm__)
	const uint32_t insns[] = { 0xe3a00000 | n, 0xe12fff1e };	/* mov r0, #n; bx lr */
#elif defined(__x86_64__)
	const uint8_t insns[] = { 0xb8, n, 0, 0, 0, 0xc3 };		/* mov eax, n; ret */
#else
#error "which instructions return a number on this machine?"
#endif
	memcpy(code, insns, sizeof(insns));
	return sizeof(insns);
}

int call_code(const uint8_t *code)
{
	return ((int (*)(void))(uintptr_t)code)();
}

static uint8_t *map_code(int fd, size_t len)
{
	return map(fd, len, PROT_READ | PROT_EXEC, MAP_SHARED, 0);
}

static void run_written_code(int flags)
{
	int fd = create_hole("code", page);
	uint8_t code[16], *p;
	size_t len;
	int n;

	for (n = 1; n < 100; n++) {
		len = make_code(code, n);
		put(fd, code, len, 0);
		p = map(fd, page, PROT_READ | PROT_EXEC, flags, 0);
		CHECK(call_code(p) == n, "code written to return %d returned %d", n, call_code(p));
		CHECK(!munmap(p, page), "munmap: %m");
	}
}

/* No cache maintenance by hand: what write(2) wrote and mmap maps, the kernel keeps coherent. */
void point_exec_written_code(void)
{
	run_written_code(MAP_SHARED);
}

/* The same through a private mapping, as the loader maps programs. */
void point_exec_private_code(void)
{
	run_written_code(MAP_PRIVATE);
}

void point_exec_stored_code(void)
{
	int fd = create_hole("code", page);
	uint8_t *writer = map_shared(fd, page), *p = map_code(fd, page);
	size_t len;
	int n;

	for (n = 1; n < 100; n++) {
		len = make_code(writer, n);
		__builtin___clear_cache((char *)writer, (char *)writer + len);
		__builtin___clear_cache((char *)p, (char *)p + len);
		CHECK(call_code(p) == n, "code stored to return %d returned %d", n, call_code(p));
	}
}

void point_exec_many_pages(void)
{
	enum { PAGES = 64 };
	int fd = create_hole("code", PAGES * page), i;
	uint8_t code[16], *p;
	size_t len;

	for (i = 0; i < PAGES; i++) {
		len = make_code(code, i + 1);
		put(fd, code, len, i * page + 64);
	}
	p = map_code(fd, PAGES * page);
	for (i = PAGES - 1; i >= 0; i--)
		CHECK(call_code(p + i * page + 64) == i + 1, "the function in page %d returned %d", i,
		      call_code(p + i * page + 64));
}

/* mprotect: written as data, then made executable at the same address. */
void point_exec_after_protect(void)
{
	int fd = create_hole("code", page), n;
	uint8_t *p = map_shared(fd, page);
	size_t len;

	for (n = 1; n < 50; n++) {
		CHECK(!mprotect(p, page, PROT_READ | PROT_WRITE), "mprotect: %m");
		len = make_code(p, n);
		__builtin___clear_cache((char *)p, (char *)p + len);
		CHECK(!mprotect(p, page, PROT_READ | PROT_EXEC), "mprotect: %m");
		CHECK(call_code(p) == n, "code stored to return %d returned %d", n, call_code(p));
	}
}
