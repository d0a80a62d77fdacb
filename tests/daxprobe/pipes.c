// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group pipes: pages that a pipe or a socket refers to instead of copying them. The reader gets what
 * is in the page when it reads, as of any file's page; the page stays in use until then.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daxprobe.h"

struct pipe_ends {
	int out;
	int in;
};

static struct pipe_ends make_pipe(void)
{
	int ends[2];

	CHECK(!pipe2(ends, O_CLOEXEC | O_NONBLOCK), "pipe: %m");
	return (struct pipe_ends){ ends[0], ends[1] };
}

static void lend(struct pipe_ends pipe, void *p, size_t len, unsigned int flags)
{
	struct iovec part = { p, len };
	ssize_t n = vmsplice(pipe.in, &part, 1, flags);

	CHECK(n >= 0, "vmsplice of %zu bytes: %m", len);
	CHECK((size_t)n == len, "vmsplice took %zd of %zu bytes", n, len);
}

static void verify_read(int fd, size_t len, unsigned int seed, size_t off, const char *what)
{
	uint8_t *data = aligned_buffer(len);
	ssize_t n = read(fd, data, len);

	CHECK(n >= 0, "%s: read: %m", what);
	CHECK((size_t)n == len, "%s: read gave %zd of %zu bytes", what, n, len);
	verify(data, len, seed, off, what);
	munmap(data, len);
}

void point_vmsplice_shared(void)
{
	uint8_t *p = touched(4);
	struct pipe_ends pipe = make_pipe();

	lend(pipe, p, 4 * page, 0);
	verify_read(pipe.out, 4 * page, 2, 0, "whole pages by a pipe");
	lend(pipe, p + page - 100, 200, 0);
	verify_read(pipe.out, 200, 2, page - 100, "a part over a page boundary");
	/* The page itself is in the pipe: the reader sees the later store. */
	lend(pipe, p, page, 0);
	fill(p, page, 3, 0);
	verify_read(pipe.out, page, 3, 0, "a page stored to after vmsplice");
}

void point_vmsplice_untouched(void)
{
	int dax = create_filled("dax", 2 * page, 1);
	struct pipe_ends pipe = make_pipe();
	uint8_t data[64], *p;
	blkcnt_t before;

	CHECK(!ftruncate(dax, 4 * page), "ftruncate: %m");
	before = blocks_of(dax);
	p = map_shared(dax, 4 * page);
	lend(pipe, p, 2 * page, 0);
	verify_read(pipe.out, 2 * page, 1, 0, "pages that nobody had touched");
	lend(pipe, p + 3 * page, sizeof(data), 0);
	CHECK(read(pipe.out, data, sizeof(data)) == sizeof(data), "read: %m");
	verify_zero(data, sizeof(data), "a hole by a pipe");
	CHECK(blocks_of(dax) == before, "the hole has blocks now");
}

/* The pages are still the file's: giving them away is allowed, and takes nothing from it. */
void point_vmsplice_gift(void)
{
	uint8_t *p = touched(2);
	struct pipe_ends pipe = make_pipe();
	int to = create("moved");

	lend(pipe, p, 2 * page, SPLICE_F_GIFT);
	verify_read(pipe.out, 2 * page, 2, 0, "pages that were given to a pipe");
	lend(pipe, p, 2 * page, SPLICE_F_GIFT);
	CHECK(splice(pipe.out, NULL, to, NULL, 2 * page, SPLICE_F_MOVE) == (ssize_t)(2 * page),
	      "splice with SPLICE_F_MOVE: %m");
	verify_file(to, 2 * page, 2, 0, "the file that they were moved to");
	fill(p, 2 * page, 3, 0);
	verify_file(to, 2 * page, 2, 0, "that file after stores to the first");
	verify_named("dax", 2 * page, 3, 0, "the file that they came from");
}

void point_vmsplice_private(void)
{
	int dax = create_filled("dax", 3 * page, 1);
	uint8_t *p = map_private(dax, 3 * page);
	struct pipe_ends pipe = make_pipe();

	fill(p, page, 2, 0);
	(void)*(volatile uint8_t *)(p + page);
	lend(pipe, p, 3 * page, 0);
	verify_read(pipe.out, page, 2, 0, "a private copy");
	verify_read(pipe.out, 2 * page, 1, page, "private pages that are not copied");
	/* What is stored after vmsplice goes into a copy: the pipe has the file's page. */
	lend(pipe, p + page, page, 0);
	fill(p + page, page, 4, page);
	verify_read(pipe.out, page, 1, page, "an uncopied page, copied after vmsplice");
	verify_file(dax, 3 * page, 1, 0, "the file");
}

void point_vmsplice_tee(void)
{
	uint8_t *p = touched(2);
	struct pipe_ends first = make_pipe(), second = make_pipe();

	lend(first, p, 2 * page, 0);
	CHECK(tee(first.out, second.in, 2 * page, 0) == (ssize_t)(2 * page), "tee: %m");
	verify_read(first.out, 2 * page, 2, 0, "the first pipe");
	CHECK(!munmap(p, 2 * page), "munmap: %m");
	verify_read(second.out, 2 * page, 2, 0, "the second pipe, the mapping gone");
}

void point_vmsplice_to_files(void)
{
	uint8_t *p = touched(4);
	struct pipe_ends pipe = make_pipe();
	int plain = create_in(plain_dir, "plain", 0), dax = create("other");
	int direct = create_in(plain_dir, "direct", O_DIRECT);
	uint8_t *data = aligned_buffer(4 * page);

	lend(pipe, p, 4 * page, 0);
	CHECK(splice(pipe.out, NULL, plain, NULL, 4 * page, 0) == (ssize_t)(4 * page),
	      "splice into a file: %m");
	get(plain, data, 4 * page, 0);
	verify(data, 4 * page, 2, 0, "a file on a disk");
	lend(pipe, p, 4 * page, 0);
	CHECK(splice(pipe.out, NULL, direct, NULL, 4 * page, 0) == (ssize_t)(4 * page),
	      "splice into a file with O_DIRECT: %m");
	get(direct, data, 4 * page, 0);
	verify(data, 4 * page, 2, 0, "a file on a disk with O_DIRECT");
	lend(pipe, p, 4 * page, 0);
	CHECK(splice(pipe.out, NULL, dax, NULL, 4 * page, 0) == (ssize_t)(4 * page),
	      "splice into a DAX file: %m");
	verify_file(dax, 4 * page, 2, 0, "a file on the same file system");
}

/* A TCP connection over the loopback interface */
static void connect_pair(int *sender, int *receiver)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t len = sizeof(address);
	struct ifreq loopback = { .ifr_name = "lo" };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*sender = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(listener >= 0 && *sender >= 0, "socket: %m (CONFIG_INET)");
	CHECK(!ioctl(listener, SIOCGIFFLAGS, &loopback), "lo: %m");
	loopback.ifr_flags |= IFF_UP;
	CHECK(!ioctl(listener, SIOCSIFFLAGS, &loopback), "switching lo on: %m");
	CHECK(!bind(listener, (struct sockaddr *)&address, len) && !listen(listener, 1) &&
	      !getsockname(listener, (struct sockaddr *)&address, &len), "listen: %m");
	CHECK(!connect(*sender, (struct sockaddr *)&address, len), "connect: %m");
	*receiver = accept(listener, NULL, NULL);
	CHECK(*receiver >= 0, "accept: %m");
	close(listener);
}

static void verify_received(int fd, size_t len, unsigned int seed, const char *what)
{
	uint8_t *data = aligned_buffer(len);

	CHECK(recv(fd, data, len, MSG_WAITALL) == (ssize_t)len, "%s: recv: %m", what);
	verify(data, len, seed, 0, what);
	munmap(data, len);
}

/* The kernel tells when it needs the pages no more. */
static void await_zerocopy(int fd)
{
	struct pollfd talk = { .fd = fd };
	char control[128];
	struct msghdr message = { .msg_control = control, .msg_controllen = sizeof(control) };
	struct sock_extended_err *report;
	struct cmsghdr *header;

	CHECK(poll(&talk, 1, 10000) == 1 && talk.revents & POLLERR,
	      "no completion of MSG_ZEROCOPY within 10 s");
	CHECK(recvmsg(fd, &message, MSG_ERRQUEUE) >= 0, "the socket's error queue: %m");
	header = CMSG_FIRSTHDR(&message);
	CHECK(header, "there is nothing in the socket's error queue");
	report = (struct sock_extended_err *)CMSG_DATA(header);
	CHECK(report->ee_origin == SO_EE_ORIGIN_ZEROCOPY && !report->ee_errno,
	      "the completion says origin %d, errno %u", report->ee_origin, report->ee_errno);
}

void point_zerocopy_send(void)
{
	enum { PAGES = 4 };
	uint8_t *p = touched(PAGES), *mine = map_again("dax", PAGES * page, MAP_PRIVATE);
	int sender, receiver, on = 1;

	connect_pair(&sender, &receiver);
	CHECK(!setsockopt(sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)), "SO_ZEROCOPY: %m");
	CHECK(send(sender, p, PAGES * page, MSG_ZEROCOPY) == (ssize_t)(PAGES * page),
	      "send with MSG_ZEROCOPY: %m");
	verify_received(receiver, PAGES * page, 2, "what was sent from a shared mapping");
	await_zerocopy(sender);
	fill(mine, page, 2, 0);
	CHECK(send(sender, mine, PAGES * page, MSG_ZEROCOPY) == (ssize_t)(PAGES * page),
	      "send with MSG_ZEROCOPY: %m");
	verify_received(receiver, PAGES * page, 2, "what was sent from a private mapping");
	await_zerocopy(sender);
	verify(p, PAGES * page, 2, 0, "the mapping");
}

void point_splice_to_socket(void)
{
	uint8_t *p = touched(4);
	struct pipe_ends pipe = make_pipe();
	int sender, receiver, dax = open(in_dir(point_dir, "dax"), O_RDONLY);
	off_t off = 0;

	connect_pair(&sender, &receiver);
	lend(pipe, p, 4 * page, 0);
	CHECK(splice(pipe.out, NULL, sender, NULL, 4 * page, 0) == (ssize_t)(4 * page),
	      "splice into a socket: %m");
	verify_received(receiver, 4 * page, 2, "what was spliced into a socket");
	CHECK(sendfile(sender, dax, &off, 4 * page) == (ssize_t)(4 * page), "sendfile: %m");
	verify_received(receiver, 4 * page, 2, "what sendfile put into a socket");
	CHECK(!ftruncate(open(in_dir(point_dir, "dax"), O_RDWR), 0), "truncate: %m");
}
