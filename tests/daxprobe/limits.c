// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group limits: memory without struct pages. What copies by the user's address works as for any
 * memory; what needs the page itself (get_user_pages) is refused, with the errno that users are
 * told. An anonymous copy in a private mapping is an ordinary page again.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

void point_write_from_mapping(void)
{
	uint8_t *data = aligned_buffer(3 * page), *p = touched(4);
	int plain = create_in(plain_dir, "plain", 0), dax = create("other");

	put(plain, p + 5, 3 * page, 0);
	get(plain, data, 3 * page, 0);
	verify(data, 3 * page, 2, 5, "a file on another file system, written from the mapping");
	put(dax, p, 4 * page, 0);
	verify_file(dax, 4 * page, 2, 0, "a file beside, written from the mapping");
}

void point_read_into_mapping(void)
{
	uint8_t *data = aligned_buffer(4 * page), *p = touched(4);
	int plain = create_in(plain_dir, "plain", 0);
	int dax = open(in_dir(point_dir, "dax"), O_RDONLY);

	fill(data, 4 * page, 3, 0);
	put(plain, data, 4 * page, 0);
	get(plain, p + 7, 3 * page, 0);
	verify(p, 7, 2, 0, "the bytes before");
	verify(p + 7, 3 * page, 3, 0, "the mapping after read(2) into it");
	verify(p + 3 * page + 7, page - 7, 2, 3 * page + 7, "the bytes behind");
	get(dax, data, 3 * page, 7);
	verify(data, 3 * page, 3, 0, "the mapped file");
}

void point_syscall_buffers(void)
{
	uint8_t *p = touched(2), data[500];
	int ends[2], sockets[2];
	struct stat *st = (struct stat *)(p + 256), direct;

	CHECK(!pipe(ends), "pipe: %m");
	CHECK(write(ends[1], p + page - 100, 200) == 200, "write(2) to a pipe: %m");
	CHECK(read(ends[0], data, 200) == 200, "read(2) from a pipe: %m");
	verify(data, 200, 2, page - 100, "what a pipe got from the mapping");

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), "socketpair: %m");
	fill(data, sizeof(data), 3, 0);
	CHECK(send(sockets[0], data, sizeof(data), 0) == sizeof(data), "send: %m");
	CHECK(recv(sockets[1], p + page - 99, sizeof(data), MSG_WAITALL) == sizeof(data),
	      "recv into the mapping: %m");
	verify(p + page - 99, sizeof(data), 3, 0, "what a socket put into the mapping");

	strcpy((char *)p, point_dir);
	CHECK(!stat((char *)p, st), "stat, path and result in the mapping: %m");
	CHECK(!stat(point_dir, &direct), "stat: %m");
	CHECK(st->st_ino == direct.st_ino, "stat into the mapping gave another inode");
}

void point_odirect_read(void)
{
	uint8_t *p = touched(4);
	int direct = direct_file(4 * page, 3);

	CHECK_ERRNO(pread(direct, p, 4 * page, 0), EFAULT);
	verify(p, 4 * page, 2, 0, "the mapping after the refused read");
}

void point_odirect_write(void)
{
	uint8_t *p = touched(4);
	int direct = direct_file(4 * page, 3);
	uint8_t *data = aligned_buffer(4 * page);

	CHECK_ERRNO(pwrite(direct, p, 4 * page, 0), EFAULT);
	get(direct, data, 4 * page, 0);
	verify(data, 4 * page, 3, 0, "the file after the refused write");
}

/* Not yet mapped pages take another way through get_user_pages: it has to fault them first. */
void point_odirect_untouched(void)
{
	int dax = create_filled("dax", 4 * page, 2);
	uint8_t *p = map_shared(dax, 4 * page);
	int direct = direct_file(2 * page, 3);

	CHECK_ERRNO(pread(direct, p, 2 * page, 0), EFAULT);
	CHECK_ERRNO(pwrite(direct, p + 2 * page, 2 * page, 0), EFAULT);
	verify(p, 4 * page, 2, 0, "the mapping");
}

void point_odirect_hole(void)
{
	int dax = create_hole("dax", 2 * page);
	uint8_t *p = map_shared(dax, 2 * page);
	int direct = direct_file(2 * page, 3);
	const blkcnt_t before = blocks_of(dax);

	CHECK_ERRNO(pread(direct, p, 2 * page, 0), EFAULT);
	CHECK(blocks_of(dax) == before, "the refused read has allocated %lld blocks",
	      (long long)(blocks_of(dax) - before));
	verify_zero(p, 2 * page, "the hole");
}

void point_odirect_private_copy(void)
{
	int dax = create_filled("dax", 2 * page, 1);
	uint8_t *p = map_private(dax, 2 * page);
	int direct = direct_file(2 * page, 3);

	fill(p, 2 * page, 2, 0);
	CHECK(pwrite(direct, p, page, 0) == (ssize_t)page, "O_DIRECT write from a copy: %m");
	CHECK(pread(direct, p + page, page, 0) == (ssize_t)page, "O_DIRECT read into a copy: %m");
	verify(p + page, page, 2, 0, "what went from one private copy to the other");
	verify_file(dax, 2 * page, 1, 0, "the file under the copies");
}

void point_odirect_private_uncopied(void)
{
	int dax = create_filled("dax", page, 1);
	uint8_t *p = map_private(dax, page);
	int direct = direct_file(page, 3);

	verify(p, page, 1, 0, "a private page that is not copied");
	CHECK_ERRNO(pwrite(direct, p, page, 0), EFAULT);
}

void point_process_vm_remote(void)
{
	uint8_t *p = touched(1), *data = aligned_buffer(page), *plain = aligned_buffer(page);
	pid_t pid;

	fill(plain, page, 3, 0);
	pid = victim();
	CHECK(vm_copy(pid, data, plain, page, false) == (ssize_t)page,
	      "process_vm_readv of ordinary memory: %m");
	verify(data, page, 3, 0, "what process_vm_readv read");
	CHECK_ERRNO(vm_copy(pid, data, p, page, false), EFAULT);
	CHECK_ERRNO(vm_copy(pid, data, p, page, true), EFAULT);
	verify(p, page, 2, 0, "the mapping after the refused copies");
}

void point_process_vm_local(void)
{
	uint8_t *p = touched(1), *plain = aligned_buffer(page);
	pid_t pid;

	fill(plain, page, 3, 0);
	pid = victim();
	CHECK(vm_copy(pid, p, plain, page, false) == (ssize_t)page,
	      "process_vm_readv into a mapping of one's own: %m");
	verify(p, page, 3, 0, "the mapping");
}

void point_proc_mem(void)
{
	uint8_t *p = touched(1), *plain = aligned_buffer(page), data[64];
	int mem = open("/proc/self/mem", O_RDWR);

	CHECK(mem >= 0, "/proc/self/mem: %m");
	fill(plain, page, 3, 0);
	CHECK(pread(mem, data, sizeof(data), (uintptr_t)plain) == sizeof(data),
	      "/proc/self/mem, ordinary memory: %m");
	verify(data, sizeof(data), 3, 0, "/proc/self/mem, ordinary memory");
	CHECK_ERRNO(pread(mem, data, sizeof(data), (uintptr_t)p), EIO);
	CHECK_ERRNO(pwrite(mem, data, sizeof(data), (uintptr_t)p), EIO);
	verify(p, page, 2, 0, "the mapping after the refused write");
}

void point_ptrace_shared(void)
{
	uint8_t *p = touched(1), *plain = aligned_buffer(page);
	long want = 0x12345678;
	pid_t pid;

	memcpy(plain, &want, sizeof(want));
	pid = traced_victim();
	CHECK(peek(pid, plain) == want, "PTRACE_PEEKDATA of ordinary memory: %m");
	CHECK_ERRNO(peek(pid, p), EIO);
	CHECK_ERRNO(ptrace(PTRACE_POKEDATA, pid, p, NULL), EIO);
	verify(p, page, 2, 0, "the mapping after the refused poke");
}

/* What a debugger does to a program that runs from DAX: read its data, plant a breakpoint. */
void point_ptrace_private(void)
{
	int dax = create_filled("dax", 2 * page, 1);
	uint8_t *data = map_private(dax, page);
	uint8_t *text = map(dax, page, PROT_READ | PROT_EXEC, MAP_PRIVATE, page);
	long want = 0x12345678, got;
	pid_t pid;

	memcpy(data, &want, sizeof(want));
	verify(text, page, 1, page, "the program's text");
	pid = traced_victim();
	got = peek(pid, data);
	CHECK(got == want && !errno, "PTRACE_PEEKDATA of a private copy: %m");
	CHECK(!ptrace(PTRACE_POKEDATA, pid, text + 16, (void *)want),
	      "PTRACE_POKEDATA into read-only private text: %m");
	got = peek(pid, text + 16);
	CHECK(got == want && !errno, "PTRACE_PEEKDATA of what was poked: %m");
	verify_file(dax, 2 * page, 1, 0, "the program's file");
}

void point_vmsplice_in(void)
{
	uint8_t *p = touched(1), *plain = aligned_buffer(page);
	struct iovec part = { plain, page };
	int ends[2];

	CHECK(!pipe(ends), "pipe: %m");
	fill(plain, page, 3, 0);
	CHECK(vmsplice(ends[1], &part, 1, SPLICE_F_NONBLOCK) == (ssize_t)page,
	      "vmsplice of ordinary memory: %m");
	part.iov_base = p;
	CHECK_ERRNO(vmsplice(ends[1], &part, 1, SPLICE_F_NONBLOCK), EFAULT);
}

void point_vmsplice_out(void)
{
	uint8_t *p = touched(1), data[300];
	struct iovec part = { p + 10, sizeof(data) };
	int ends[2];

	CHECK(!pipe(ends), "pipe: %m");
	fill(data, sizeof(data), 3, 0);
	CHECK(write(ends[1], data, sizeof(data)) == sizeof(data), "write to a pipe: %m");
	CHECK(vmsplice(ends[0], &part, 1, 0) == sizeof(data),
	      "vmsplice from a pipe, which copies: %m");
	verify(p + 10, sizeof(data), 3, 0, "the mapping");
}

void point_futex_shared(void)
{
	uint32_t *word = (uint32_t *)touched(1), plain = 7;

	*word = 7;
	CHECK_ERRNO(futex(&plain, FUTEX_WAIT, 8), EAGAIN);
	CHECK_ERRNO(futex(word, FUTEX_WAIT, 8), EFAULT);
	CHECK_ERRNO(futex(word, FUTEX_WAKE, 1), EFAULT);
}

static void *sleeper(void *arg)
{
	uint32_t *word = arg;

	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
		futex(word, FUTEX_WAIT_PRIVATE, 0);
	return NULL;
}

/* Locks between the threads of one process do work: their key is the address. */
void point_futex_private(void)
{
	uint32_t *word = (uint32_t *)touched(1);
	pthread_t thread;

	*word = 7;
	CHECK_ERRNO(futex(word, FUTEX_WAIT_PRIVATE, 8), EAGAIN);
	*word = 0;
	CHECK(!pthread_create(&thread, NULL, sleeper, word), "no thread");
	while (futex(word, FUTEX_WAKE_PRIVATE, 1) != 1)
		sched_yield();
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	CHECK(futex(word, FUTEX_WAKE_PRIVATE, 1) >= 0, "FUTEX_WAKE_PRIVATE: %m");
	CHECK(!pthread_join(thread, NULL), "pthread_join failed");
}

static void *map_sync(int fd)
{
	return mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0);
}

void point_map_sync_refused(void)
{
	int fd = create_filled("file", page, 1);
	void *p;

	CHECK(file_is_dax(fd), "the file is not in DAX mode: the refusal would say nothing");
	p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE, fd, 0);
	CHECK(p != MAP_FAILED, "MAP_SHARED_VALIDATE without MAP_SYNC: %m");
	p = map_sync(fd);
	CHECK(p == MAP_FAILED,
	      "MAP_SYNC succeeded: it promises that stores are durable without a system call");
	CHECK(errno == EOPNOTSUPP, "MAP_SYNC: %m, expected: %s", strerror(EOPNOTSUPP));
}

void point_map_sync_allowed(void)
{
	int fd = create_filled("file", page, 1);
	uint8_t *p = map_sync(fd);

	CHECK(p != MAP_FAILED, "MAP_SYNC on a volatile region: %m");
	fill(p, page, 2, 0);
	verify_file(fd, page, 2, 0, "the file after stores by MAP_SYNC");
}

void point_mlock(void)
{
	enum { PAGES = 16 };
	int fd = create_filled("file", PAGES * page, 1);
	uint8_t *p = map_shared(fd, PAGES * page);
	long before;
	size_t i;

	CHECK(!mlock(p, PAGES * page), "mlock: %m");
	before = minor_faults();
	for (i = 0; i < PAGES; i++)
		(void)*(volatile uint8_t *)(p + i * page);
	CHECK(minor_faults() - before < PAGES / 2, "mlock did not bring the pages in: %ld faults",
	      minor_faults() - before);
	fill(p, PAGES * page, 2, 0);
	CHECK(!munlock(p, PAGES * page), "munlock: %m");
	verify_file(fd, PAGES * page, 2, 0, "the file");
}

void point_mlock_private(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_private(fd, 4 * page);

	p[0] = ~p[0];
	CHECK(!mlock(p, 4 * page), "mlock of a private mapping: %m");
	verify(p + 1, 4 * page - 1, 1, 1, "the private mapping");
	CHECK(!munlock(p, 4 * page), "munlock: %m");
	verify_file(fd, 4 * page, 1, 0, "the file");
}

void point_mlock_onfault(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p = map_shared(fd, 4 * page);

	CHECK(!mlock2(p, 4 * page, MLOCK_ONFAULT), "mlock2 with MLOCK_ONFAULT: %m");
	fill(p, 4 * page, 2, 0);
	verify_file(fd, 4 * page, 2, 0, "the file");
	CHECK(!munlockall(), "munlockall: %m");
}

void point_mlockall(void)
{
	int fd = create_filled("file", 4 * page, 1);
	uint8_t *p;

	CHECK(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall: %m");
	p = map_shared(fd, 4 * page);
	fill(p, 4 * page, 2, 0);
	verify_file(fd, 4 * page, 2, 0, "the file");
	CHECK(!munlockall(), "munlockall: %m");
}
