// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group pins: pages that are in use elsewhere, here by a pipe, against what takes them from the file.
 * Blocks must not be freed under a page that somebody still reads or writes: the call waits.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

#define HELD_PAGES 4
/* By then a call that does not wait has ended. */
#define SHORT_WAIT_MS 300
/* And by then one whose pages are free again */
#define LONG_WAIT_MS 10000

/* What a child does to the file while its pages are held */
struct change {
	int fd;
	int mode;	/* of fallocate; -1: truncate */
	off_t off;
	off_t len;
};

static void change_file(void *arg)
{
	const struct change *change = arg;

	if (change->mode < 0)
		resize(change->fd, change->off);
	else
		CHECK(!fallocate(change->fd, change->mode, change->off, change->len),
		      "fallocate with mode 0x%x: %m", change->mode);
}

/* Begins the change in a child, which waits for the pages that a pipe has. */
static pid_t start_that_waits(struct change *change)
{
	pid_t pid = start(change_file, change);

	CHECK(!ends_within(pid, SHORT_WAIT_MS), "it did not wait for the pages that a pipe has");
	return pid;
}

static void lend(int pipe, uint8_t *p, size_t len)
{
	struct iovec part = { p, len };

	CHECK(vmsplice(pipe, &part, 1, 0) == (ssize_t)len, "vmsplice: %m");
}

static void take(int pipe, size_t len, unsigned int seed, const char *what)
{
	uint8_t *data = aligned_buffer(len);

	CHECK(read(pipe, data, len) == (ssize_t)len, "read of a pipe: %m");
	verify(data, len, seed, 0, what);
	munmap(data, len);
}

/* The first pages of the file are in a pipe: the change waits until somebody has read it. */
static void check_waits(struct change change)
{
	uint8_t *p = map_shared(change.fd, HELD_PAGES * page);
	int ends[2], other;
	pid_t pid;

	CHECK(!pipe(ends), "pipe: %m");
	lend(ends[1], p, HELD_PAGES * page);
	pid = start_that_waits(&change);
	take(ends[0], HELD_PAGES * page, 2, "the pages in the pipe");
	CHECK(ends_within(pid, LONG_WAIT_MS), "%d ms after the pages were free it still waits",
	      LONG_WAIT_MS);
	join(pid);
	/* Who gets the blocks now has them alone. */
	other = create_filled("other", 2 * HELD_PAGES * page, 7);
	verify_file(other, 2 * HELD_PAGES * page, 7, 0, "a new file");
	CHECK(!munmap(p, HELD_PAGES * page), "munmap: %m");
	close(ends[0]);
	close(ends[1]);
}

static int file_to_change(void)
{
	return create_filled("dax", 2 * HELD_PAGES * page, 2);
}

void point_pin_truncate(void)
{
	int fd = file_to_change();

	check_waits((struct change){ fd, -1, 0, 0 });
	CHECK(!file_size(fd), "the file has %lld bytes", (long long)file_size(fd));
}

/* A cut inside a page that is held: the rest of it is zeroed only when it is free. */
void point_pin_truncate_part(void)
{
	int fd = file_to_change();

	check_waits((struct change){ fd, -1, page, 0 });
	verify_file(fd, page, 2, 0, "the file");
}

void point_pin_punch(void)
{
	int fd = file_to_change();

	check_waits((struct change){ fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				     HELD_PAGES * page });
	verify_file_zero(fd, HELD_PAGES * page, "the punched part");
}

void point_pin_zero(void)
{
	int fd = file_to_change();

	check_waits((struct change){ fd, FALLOC_FL_ZERO_RANGE, 0, HELD_PAGES * page });
	verify_file_zero(fd, HELD_PAGES * page, "the zeroed part");
}

void point_pin_collapse(void)
{
	uint8_t *data = aligned_buffer(HELD_PAGES * page);
	int fd = file_to_change();

	check_waits((struct change){ fd, FALLOC_FL_COLLAPSE_RANGE, 0, HELD_PAGES * page });
	get(fd, data, HELD_PAGES * page, 0);
	verify(data, HELD_PAGES * page, 2, HELD_PAGES * page, "what moved to the beginning");
}

/*
 * The pages are touched again while truncate waits: it still cuts them off once the pipe has been read,
 * although they are mapped then. Nobody unmaps them but truncate itself.
 */
void point_pin_touched_meanwhile(void)
{
	int fd = file_to_change(), ends[2];
	uint8_t *p = map_shared(fd, HELD_PAGES * page);
	struct change change = { fd, -1, 0, 0 };
	pid_t pid;

	CHECK(!pipe(ends), "pipe: %m");
	lend(ends[1], p, HELD_PAGES * page);
	pid = start_that_waits(&change);
	verify(p, HELD_PAGES * page, 2, 0, "the mapping while truncate waits");
	take(ends[0], HELD_PAGES * page, 2, "the pages in the pipe");
	CHECK(ends_within(pid, LONG_WAIT_MS),
	      "%d ms after the pipe was read truncate still waits for pages that are only mapped",
	      LONG_WAIT_MS);
	join(pid);
	check_signal(signal_of_load(p), SIGBUS, "a load behind the end");
}

/* Who waits can be killed, and has changed nothing. */
void point_pin_killed(void)
{
	int fd = file_to_change(), ends[2];
	uint8_t *p = map_shared(fd, HELD_PAGES * page);
	struct change change = { fd, -1, 0, 0 };
	pid_t pid;

	CHECK(!pipe(ends), "pipe: %m");
	lend(ends[1], p, HELD_PAGES * page);
	pid = start_that_waits(&change);
	kill(pid, SIGKILL);
	CHECK(ends_within(pid, LONG_WAIT_MS), "a truncate that waits cannot be killed");
	CHECK(waitpid(pid, NULL, 0) == pid, "waitpid: %m");
	take(ends[0], HELD_PAGES * page, 2, "the pages in the pipe");
	verify(p, HELD_PAGES * page, 2, 0, "the mapping");
	change.off = page;
	change_file(&change);
	verify_file(fd, page, 2, 0, "the file after a truncate that is not held up");
}

/* Mapped by nobody, its process gone: what a pipe has stays what it is. */
void point_pin_outlives_process(void)
{
	int fd = file_to_change(), ends[2];
	uint8_t *p = map_shared(fd, HELD_PAGES * page);
	struct change change = { fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page };
	pid_t pid;

	CHECK(!pipe(ends), "pipe: %m");
	pid = fork();
	CHECK(pid >= 0, "fork: %m");
	if (!pid) {
		lend(ends[1], p, HELD_PAGES * page);
		_exit(0);
	}
	join(pid);
	CHECK(!munmap(p, HELD_PAGES * page), "munmap: %m");
	pid = start_that_waits(&change);
	take(ends[0], HELD_PAGES * page, 2, "the pages in the pipe");
	join(pid);
}

/* The whole pipe goes, unread: that frees the pages as well. */
void point_pin_pipe_closed(void)
{
	int fd = file_to_change(), ends[2];
	uint8_t *p = map_shared(fd, HELD_PAGES * page);
	struct change change = { fd, -1, 0, 0 };
	struct baton b;
	pid_t holder, pid;

	baton_make(&b);
	holder = fork();
	CHECK(holder >= 0, "fork: %m");
	if (!holder) {
		CHECK(!pipe(ends), "pipe: %m");
		lend(ends[1], p, HELD_PAGES * page);
		baton_to_parent(&b);
		for (;;)
			pause();
	}
	baton_await_child(&b);
	pid = start_that_waits(&change);
	kill(holder, SIGKILL);
	CHECK(waitpid(holder, NULL, 0) == holder, "waitpid: %m");
	CHECK(ends_within(pid, LONG_WAIT_MS), "the pipe is gone, and truncate still waits");
	join(pid);
}

/* For tests on the board --------------------------------------------------------------------- */

static void say(const char *word)
{
	puts(word);
	fflush(stdout);
}

int hold_pages(const char *path, unsigned int seconds)
{
	const size_t len = HELD_PAGES * page;
	uint8_t *before = aligned_buffer(len), *after = aligned_buffer(len), *p;
	int fd = open(path, O_RDWR | O_CLOEXEC), ends[2];

	CHECK(fd >= 0, "open %s: %m", path);
	get(fd, before, len, 0);
	p = map_shared(fd, len);
	CHECK(!pipe(ends), "pipe: %m");
	lend(ends[1], p, len);
	CHECK(!munmap(p, len) && !close(fd), "munmap, close: %m");
	say("held");
	sleep(seconds);
	say("released");
	CHECK(read(ends[0], after, len) == (ssize_t)len, "read of a pipe: %m");
	CHECK(!memcmp(before, after, len), "the pages have changed while a pipe had them");
	return 0;
}

int aio_into(const char *path, const char *device, bool stay)
{
	const size_t len = HELD_PAGES * page;
	int fd = open(path, O_RDWR | O_CLOEXEC), direct = open(device, O_RDONLY | O_DIRECT);
	uint8_t *p, *want = aligned_buffer(len);
	struct aio *aio = aio_open();

	CHECK(fd >= 0 && direct >= 0, "open %s, %s: %m", path, device);
	p = map_shared(fd, len);
	aio_submit(aio, false, direct, p, len, 0);
	say("submitted");
	if (!stay)
		return 0;
	aio_await(aio, len);
	say("done");
	get(direct, want, len, 0);
	/* Where the file was cut meanwhile there is nothing to look at. */
	if (file_size(fd) >= (off_t)len)
		CHECK(!memcmp(p, want, len), "the data in the mapping is wrong");
	return 0;
}
