// SPDX-License-Identifier: GPL-2.0-only
/*
 * Group locks: what programs put into a file to share it: the futexes of process-shared locks, whose
 * key is the file and the place in it. Four processes contend, two of them forks of the point, two
 * programs of their own with the file at another address; the runner's alarm ends what hangs.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daxprobe.h"

#ifndef SYS_futex
#define SYS_futex SYS_futex_time64
#endif

#define WORKERS 4
#define ROUNDS 200
/* How long a sleeper waits before it says that nobody woke it */
#define SLEEP_LIMIT_S 20

enum kind { MUTEX, ROBUST, INHERIT, CONDITION, SEMAPHORE, RWLOCK, BARRIER };

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t condition;
	pthread_rwlock_t rwlock;
	pthread_barrier_t barrier;
	sem_t semaphore;
	volatile unsigned int count;
	volatile unsigned int turn;
	volatile unsigned int owners_died;
	volatile unsigned int at_barrier[WORKERS];
};

/* Calls that return an errno */
#define MUST(call)						\
	do {							\
		const int error_ = (call);			\
								\
		CHECK(!error_, "%s: %s", #call, strerror(error_)); \
	} while (0)

static struct shared *map_locks(int fd)
{
	return (struct shared *)map_shared(fd, page);
}

static void prepare(struct shared *s, enum kind kind)
{
	pthread_mutexattr_t mutex;
	pthread_condattr_t condition;
	pthread_rwlockattr_t rwlock;
	pthread_barrierattr_t barrier;

	MUST(pthread_mutexattr_init(&mutex));
	MUST(pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED));
	if (kind == ROBUST)
		MUST(pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST));
	if (kind == INHERIT) {
		MUST(pthread_mutexattr_setprotocol(&mutex, PTHREAD_PRIO_INHERIT));
		MUST(pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST));
	}
	MUST(pthread_mutex_init(&s->mutex, &mutex));
	MUST(pthread_condattr_init(&condition));
	MUST(pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED));
	MUST(pthread_cond_init(&s->condition, &condition));
	MUST(pthread_rwlockattr_init(&rwlock));
	MUST(pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED));
	MUST(pthread_rwlock_init(&s->rwlock, &rwlock));
	MUST(pthread_barrierattr_init(&barrier));
	MUST(pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED));
	MUST(pthread_barrier_init(&s->barrier, &barrier, WORKERS));
	CHECK(!sem_init(&s->semaphore, 1, 1), "sem_init: %m");
}

static void lock(struct shared *s)
{
	const int error = pthread_mutex_lock(&s->mutex);

	if (error == EOWNERDEAD) {
		s->owners_died++;
		MUST(pthread_mutex_consistent(&s->mutex));
	} else {
		CHECK(!error, "pthread_mutex_lock: %s", strerror(error));
	}
}

/* Not atomic: two at a time lose counts. */
static void count(struct shared *s)
{
	const unsigned int before = s->count;

	if (!(before % 8))
		usleep(500);	/* the others must sleep, too */
	else
		sched_yield();
	s->count = before + 1;
}

static void round_of(struct shared *s, enum kind kind, unsigned int me, unsigned int round)
{
	unsigned int other;

	switch (kind) {
	case MUTEX:
	case ROBUST:
	case INHERIT:
		lock(s);
		count(s);
		MUST(pthread_mutex_unlock(&s->mutex));
		break;
	case CONDITION:
		lock(s);
		while (s->turn != me)
			MUST(pthread_cond_wait(&s->condition, &s->mutex));
		s->count++;
		s->turn = (me + 1) % WORKERS;
		MUST(pthread_cond_broadcast(&s->condition));
		MUST(pthread_mutex_unlock(&s->mutex));
		break;
	case SEMAPHORE:
		CHECK(!sem_wait(&s->semaphore), "sem_wait: %m");
		count(s);
		CHECK(!sem_post(&s->semaphore), "sem_post: %m");
		break;
	case RWLOCK:
		MUST(pthread_rwlock_rdlock(&s->rwlock));
		other = s->count;
		sched_yield();
		CHECK(s->count == other, "a writer got in beside a reader");
		MUST(pthread_rwlock_unlock(&s->rwlock));
		MUST(pthread_rwlock_wrlock(&s->rwlock));
		count(s);
		MUST(pthread_rwlock_unlock(&s->rwlock));
		break;
	case BARRIER:
		s->at_barrier[me] = round + 1;
		pthread_barrier_wait(&s->barrier);
		for (other = 0; other < WORKERS; other++)
			CHECK(s->at_barrier[other] == round + 1,
			      "behind the barrier in round %u worker %u is in round %u", round,
			      other, s->at_barrier[other]);
		pthread_barrier_wait(&s->barrier);
		if (!me)
			s->count += WORKERS;
		break;
	}
}

static void work(struct shared *s, enum kind kind, unsigned int me)
{
	unsigned int round;

	for (round = 0; round < ROUNDS; round++)
		round_of(s, kind, me, round);
}

/* A program of its own; the pages of the gap move its mapping to another address. */
int helper_lock(const long *numbers)
{
	reserve(numbers[3] * page, page);
	work(map_locks(numbers[0]), numbers[1], numbers[2]);
	return 0;
}

static void contend(int fd, enum kind kind)
{
	struct shared *s = map_locks(fd), *elsewhere = map_locks(fd);
	pid_t pids[WORKERS];
	unsigned int i;

	CHECK(s != elsewhere, "both mappings are at one address");
	prepare(s, kind);
	for (i = 0; i < WORKERS; i++) {
		if (i >= WORKERS / 2) {
			pids[i] = start_helper("/proc/self/exe", "lock", 4,
					       (const long[]){ dup(fd), kind, i, 16 * i });
			continue;
		}
		pids[i] = fork();
		CHECK(pids[i] >= 0, "fork: %m");
		if (!pids[i]) {
			work(i ? elsewhere : s, kind, i);
			_exit(0);
		}
	}
	for (i = 0; i < WORKERS; i++)
		join(pids[i]);
	CHECK(s->count == WORKERS * ROUNDS, "%u of %u rounds were counted", s->count,
	      WORKERS * ROUNDS);
}

void point_lock_mutex(void)
{
	contend(create_hole("locks", page), MUTEX);
}

void point_lock_robust(void)
{
	contend(create_hole("locks", page), ROBUST);
}

void point_lock_inherit(void)
{
	contend(create_hole("locks", page), INHERIT);
}

void point_lock_condition(void)
{
	contend(create_hole("locks", page), CONDITION);
}

void point_lock_semaphore(void)
{
	contend(create_hole("locks", page), SEMAPHORE);
}

void point_lock_rwlock(void)
{
	contend(create_hole("locks", page), RWLOCK);
}

void point_lock_barrier(void)
{
	contend(create_hole("locks", page), BARRIER);
}

void point_lock_unlinked(void)
{
	int fd = create_hole("locks", page);

	CHECK(!unlink(in_dir(point_dir, "locks")), "unlink: %m");
	contend(fd, MUTEX);
	memset(map_locks(fd), 0, page);
	contend(fd, CONDITION);
}

struct owner {
	struct shared *s;
	struct baton *b;
};

static void die_as_owner(void *arg)
{
	struct owner *owner = arg;

	lock(owner->s);
	baton_to_parent(owner->b);
	usleep(100000);	/* the other one sleeps on it by then */
	kill(getpid(), SIGKILL);
}

/* The kernel finds the lock of a process that died in its list, and wakes who waits. */
static void check_owner_dies(enum kind kind)
{
	int fd = create_hole("locks", page), status, round;
	struct shared *s = map_locks(fd), *elsewhere = map_locks(fd);
	struct owner owner = { elsewhere, NULL };
	struct baton b;
	pid_t pid;

	prepare(s, kind);
	for (round = 1; round <= 3; round++) {
		baton_make(&b);
		owner.b = &b;
		pid = start(die_as_owner, &owner);
		baton_await_child(&b);
		lock(s);
		CHECK(s->owners_died == (unsigned int)round,
		      "the lock of a process that died was taken without EOWNERDEAD");
		MUST(pthread_mutex_unlock(&s->mutex));
		CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status), "waitpid: %m");
	}
}

void point_lock_owner_dies(void)
{
	check_owner_dies(ROBUST);
}

void point_lock_inherit_owner_dies(void)
{
	check_owner_dies(INHERIT);
}

static long futex_wait(uint32_t *word, uint32_t value)
{
	/* The kernel's own type: two words where the C library has 64-bit time on 32 bits, too */
	long limit[2] = { SLEEP_LIMIT_S, 0 };

	return syscall(SYS_futex, word, FUTEX_WAIT, value, limit, NULL, 0);
}

/* Sleeps on the word at numbers[1] of the file numbers[0], once it has said so. */
int helper_futex(const long *numbers)
{
	uint32_t *words = (uint32_t *)map_shared(numbers[0], 2 * page);
	uint32_t *word = words + numbers[1];

	CHECK(write(numbers[2], "", 1) == 1, "write: %m");
	while (!__atomic_load_n(word, __ATOMIC_SEQ_CST))
		CHECK(!futex_wait(word, 0) || errno == EAGAIN, "FUTEX_WAIT: %m");
	return 0;
}

static pid_t start_sleeper(int fd, size_t at)
{
	struct baton b;
	pid_t pid;

	baton_make(&b);
	pid = start_helper("/proc/self/exe", "futex", 3,
			   (const long[]){ dup(fd), at, b.to_parent[1] });
	baton_await_child(&b);
	return pid;
}

/* Wakes until somebody was there to wake; the sleeper may not sleep yet. */
static void wake_some(uint32_t *word)
{
	long woken;

	do {
		woken = futex(word, FUTEX_WAKE, 1);
		CHECK(woken >= 0, "FUTEX_WAKE: %m");
		if (!woken)
			usleep(1000);
	} while (!woken);
}

/* Whom a wake reaches: the word's place in the file counts, and not where it is mapped. */
void point_futex_key(void)
{
	int fd = create_hole("words", 2 * page), other = create_hole("others", 2 * page);
	uint32_t *words = (uint32_t *)map_shared(fd, 2 * page);
	uint32_t *elsewhere = (uint32_t *)map_shared(fd, 2 * page);
	uint32_t *others = (uint32_t *)map_shared(other, 2 * page);
	const size_t second_page = page / sizeof(*words);
	pid_t pid;

	CHECK_ERRNO(futex(words, FUTEX_WAIT, 8), EAGAIN);
	CHECK(!futex(others + 1, FUTEX_WAKE, 1), "FUTEX_WAKE of a hole that nobody waits on: %m");
	pid = start_sleeper(fd, 3);
	usleep(50000);
	CHECK(!futex(words + 2, FUTEX_WAKE, 9), "the word before wakes the sleeper");
	CHECK(!futex(words + second_page + 3, FUTEX_WAKE, 9), "the next page wakes the sleeper");
	CHECK(!futex(others + 3, FUTEX_WAKE, 9), "another file wakes the sleeper");
	wake_some(elsewhere + 3);
	CHECK(!ends_within(pid, 50), "the sleeper went on before its word changed");
	words[3] = 1;
	wake_some(words + 3);
	join(pid);
	/* Truncated and grown again, the word has another page and the same key. */
	resize(fd, 0);
	resize(fd, 2 * page);
	pid = start_sleeper(fd, second_page);
	usleep(50000);
	words[second_page] = 1;
	CHECK(futex(elsewhere + second_page, FUTEX_WAKE, 9) >= 0, "FUTEX_WAKE: %m");
	join(pid);
	resize(fd, 0);
	CHECK_ERRNO(futex(words, FUTEX_WAIT, 0), EFAULT);
}

void point_futex_requeue(void)
{
	int fd = create_hole("words", 2 * page);
	uint32_t *words = (uint32_t *)map_shared(fd, 2 * page);
	uint32_t *target = words + page / sizeof(*words);
	pid_t pids[2];
	long moved;

	pids[0] = start_sleeper(fd, 0);
	pids[1] = start_sleeper(fd, 0);
	usleep(100000);
	moved = syscall(SYS_futex, words, FUTEX_CMP_REQUEUE, 0, (void *)2, target, 0);
	CHECK(moved == 2, "FUTEX_CMP_REQUEUE moved %ld of 2 sleepers", moved);
	__atomic_store_n(words, 1, __ATOMIC_SEQ_CST);
	CHECK(!futex(words, FUTEX_WAKE, 9), "somebody still sleeps on the first word");
	CHECK(futex(target, FUTEX_WAKE, 9) == 2, "FUTEX_WAKE on the second word: %m");
	join(pids[0]);
	join(pids[1]);
}
