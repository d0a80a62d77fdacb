// SPDX-License-Identifier: GPL-2.0-only
/* Asynchronous input and output by their system calls (no library), and the points of io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "daxprobe.h"

/* So many may be under way. */
#define DEPTH 64

struct aio {
	aio_context_t context;
	struct iocb requests[DEPTH];
	unsigned int submitted;
};

struct aio *aio_open(void)
{
	struct aio *aio = calloc(1, sizeof(*aio));

	CHECK(aio, "no memory");
	CHECK(!syscall(SYS_io_setup, DEPTH, &aio->context), "io_setup: %m (CONFIG_AIO)");
	return aio;
}

void aio_submit(struct aio *aio, bool write, int fd, void *buf, size_t len, off_t off)
{
	struct iocb *request = &aio->requests[aio->submitted++ % DEPTH];

	memset(request, 0, sizeof(*request));
	request->aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
	request->aio_fildes = fd;
	request->aio_buf = (uintptr_t)buf;
	request->aio_nbytes = len;
	request->aio_offset = off;
	CHECK(syscall(SYS_io_submit, aio->context, 1, &request) == 1, "io_submit: %m");
}

void aio_await(struct aio *aio, size_t len)
{
	struct io_event event;
	long n;

	do
		n = syscall(SYS_io_getevents, aio->context, 1, 1, &event, NULL);
	while (n < 0 && errno == EINTR);
	CHECK(n == 1, "io_getevents: %m");
	CHECK(event.res == (int64_t)len, "a request of %zu bytes ended with %lld", len,
	      (long long)event.res);
}

/* io_uring: a ring with one request at a time */
struct ring {
	int fd;
	struct io_uring_params params;
	uint8_t *submission;
	uint8_t *completion;
	struct io_uring_sqe *requests;
};

static void ring_open(struct ring *ring)
{
	struct io_uring_params *params = &ring->params;

	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(SYS_io_uring_setup, 8, params);
	CHECK(ring->fd >= 0, "io_uring_setup: %m (CONFIG_IO_URING)");
	ring->submission = map(ring->fd, params->sq_off.array + params->sq_entries * 4,
			       PROT_READ | PROT_WRITE, MAP_SHARED, IORING_OFF_SQ_RING);
	ring->completion = map(ring->fd, params->cq_off.cqes +
			       params->cq_entries * sizeof(struct io_uring_cqe),
			       PROT_READ | PROT_WRITE, MAP_SHARED, IORING_OFF_CQ_RING);
	ring->requests = (void *)map(ring->fd, params->sq_entries * sizeof(struct io_uring_sqe),
				     PROT_READ | PROT_WRITE, MAP_SHARED, IORING_OFF_SQES);
}

static int ring_do(struct ring *ring, int op, int fd, void *buf, size_t len, off_t off, int flags)
{
	const struct io_sqring_offsets *sq = &ring->params.sq_off;
	const struct io_cqring_offsets *cq = &ring->params.cq_off;
	uint32_t *tail = (uint32_t *)(ring->submission + sq->tail);
	uint32_t *head = (uint32_t *)(ring->completion + cq->head);
	const uint32_t mask = *(uint32_t *)(ring->submission + sq->ring_mask);
	const uint32_t done_mask = *(uint32_t *)(ring->completion + cq->ring_mask);
	const uint32_t at = *tail & mask;
	struct io_uring_sqe *request = &ring->requests[at];
	struct io_uring_cqe *done;
	int result;

	memset(request, 0, sizeof(*request));
	request->opcode = op;
	request->fd = fd;
	request->addr = (uintptr_t)buf;
	request->len = len;
	request->off = off;
	request->flags = flags;
	((uint32_t *)(ring->submission + sq->array))[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) >= 0,
	      "io_uring_enter: %m");
	done = (struct io_uring_cqe *)(ring->completion + cq->cqes) + (*head & done_mask);
	result = done->res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

static void ring_must(struct ring *ring, int op, int fd, void *buf, size_t len, off_t off,
		      int flags)
{
	const int result = ring_do(ring, op, fd, buf, len, off, flags);

	CHECK(result == (int)len, "io_uring, operation %d of %zu bytes: %d (%s)", op, len, result,
	      result < 0 ? strerror(-result) : "bytes");
}

void point_uring_buffers(void)
{
	int dax = create_hole("dax", 8 * page), direct = direct_file(8 * page, 3);
	uint8_t *p = map_shared(dax, 8 * page), *mine, *data = aligned_buffer(4 * page);
	struct ring ring;
	unsigned int flags;

	ring_open(&ring);
	/* By this process at once, and by one of the kernel's workers */
	for (flags = 0; flags <= IOSQE_ASYNC; flags += IOSQE_ASYNC) {
		ring_must(&ring, IORING_OP_READ, direct, p, 4 * page, 0, flags);
		verify(p, 4 * page, 3, 0, "the mapping");
		verify_file(dax, 4 * page, 3, 0, "the file");
		fill(p + 4 * page, 4 * page, 4, 0);
		ring_must(&ring, IORING_OP_WRITE, direct, p + 4 * page, 4 * page, 4 * page, flags);
		get(direct, data, 4 * page, 4 * page);
		verify(data, 4 * page, 4, 0, "the disk");
		memset(p, 0, 8 * page);
	}
	fill(p, 8 * page, 2, 0);
	mine = map_private(dax, 8 * page);
	ring_must(&ring, IORING_OP_WRITE, direct, mine, page, 0, 0);
	get(direct, data, page, 0);
	verify(data, page, 2, 0, "the disk, from a private page");
	ring_must(&ring, IORING_OP_READ, direct, mine + page, page, 4 * page, 0);
	verify(mine + page, page, 4, 0, "a private page");
	verify_file(dax, 8 * page, 2, 0, "the file");
}

/* Buffers that stay pinned for as long as the ring lives: no file system with DAX allows that. */
void point_uring_fixed_refused(void)
{
	uint8_t *p = touched(4), *plain = aligned_buffer(4 * page);
	uint8_t *mine = map_again("dax", 4 * page, MAP_PRIVATE);
	struct iovec part = { plain, 4 * page };
	struct ring ring;

	ring_open(&ring);
	CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &part, 1),
	      "registering ordinary memory: %m");
	CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0),
	      "unregistering it: %m");
	part.iov_base = p;
	CHECK_ERRNO(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &part, 1),
		    EOPNOTSUPP);
	part.iov_base = mine;
	CHECK_ERRNO(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &part, 1),
		    EOPNOTSUPP);
	verify(p, 4 * page, 2, 0, "the mapping");
	CHECK(!ftruncate(open(in_dir(point_dir, "dax"), O_RDWR), 0), "truncate: %m");
}
