/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pod-to-pod traffic as fast as one CPU makes it, without the loss of one packet.
 *
 *   blast MODE SENDER_NETNS RECEIVER_NETNS RECEIVER_ADDRESS MILLISECONDS PAYLOAD_BYTES
 *
 *   udp     one thread sends a burst and takes it out again: nothing but the packets' way, the
 *           least that a packet can cost, and so the hardest measure of overhead
 *   udp-rr  request and response between two threads: each packet wakes somebody, as pods do
 *   udp-two a thread on one CPU sends as fast as it can, one on the next receives; what finds no
 *           room in the receiver's buffer does not count
 *   tcp     one thread moves a stream
 *   churn   a connection after the other: opened, a request, the response, closed
 *
 * prints "UNITS BYTES ELAPSED_NS P99_NS": units are datagrams that arrived, reads of the stream,
 * or connections; P99_NS is of a round trip (udp-rr) or of a connection (churn), of others 0.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BURST 32
#define PORT 9
#define RECEIVER_ROOM_BYTES (16 << 20)
#define MOST_TIMES (1 << 20)

static char buffer[1 << 18];
static ssize_t payload_bytes;
static struct sockaddr_in address = {.sin_family = AF_INET};
static uint32_t taken_ns[MOST_TIMES]; /* of round trips */
static uint32_t times;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void note_time(uint64_t ns)
{
	if (times < MOST_TIMES)
		taken_ns[times++] = ns;
}

static int compare(const void *one, const void *other)
{
	uint32_t left = *(const uint32_t *)one, right = *(const uint32_t *)other;

	return (left > right) - (left < right);
}

/* What was moved; of noted times that which 99 % do not exceed. */
static void tell(uint64_t units, uint64_t bytes, uint64_t elapsed_ns)
{
	qsort(taken_ns, times, sizeof(*taken_ns), compare);
	printf("%lu %lu %lu %u\n", units, bytes, elapsed_ns,
	       times ? taken_ns[times * 99ULL / 100] : 0);
	fflush(stdout);
	_exit(0); /* whatever other threads do */
}

/* A socket belongs to the namespace in which it was made, whoever uses it. */
static int socket_in(const char *netns, int type)
{
	struct timeval second = {.tv_sec = 1};
	int namespace = open(netns, O_RDONLY | O_CLOEXEC), made;

	if (namespace < 0 || setns(namespace, CLONE_NEWNET))
		err(2, "%s", netns);
	close(namespace);
	made = socket(AF_INET, type, 0);
	if (made < 0)
		err(2, "socket");
	setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second));
	return made;
}

/* Each datagram begins with its number. */
static void udp_burst(int sender, int receiver, int count)
{
	static uint32_t serial;

	for (int i = 0; i < count; i++) {
		*(uint32_t *)buffer = htonl(++serial);
		if (send(sender, buffer, payload_bytes, 0) != payload_bytes)
			err(2, "send");
	}
	for (int i = 0; i < count; i++)
		if (recv(receiver, buffer, sizeof(buffer), 0) != payload_bytes)
			err(2, "a datagram was lost");
}

/* Nobody else on this CPU while it lasts; where that is not allowed, as few as may be. */
static void alone(void)
{
	struct sched_param first = {.sched_priority = 1};

	if (sched_setscheduler(0, SCHED_FIFO, &first))
		warn("no real-time priority");
}

static void pin_to_cpu(int number)
{
	cpu_set_t only;

	CPU_ZERO(&only);
	CPU_SET(number, &only);
	if (sched_setaffinity(0, sizeof(only), &only))
		err(2, "cpu %d", number);
}

static void udp(int sender, int receiver, uint64_t for_ns)
{
	uint64_t start = now_ns(), end, packets = 0;

	do {
		udp_burst(sender, receiver, BURST);
		packets += BURST;
		end = now_ns();
	} while (end - start < for_ns);
	tell(packets, packets * payload_bytes, end - start);
}

static void *answer(void *receiver)
{
	static char taken[sizeof(buffer)];
	struct sockaddr_in from;
	socklen_t length;
	ssize_t bytes;

	for (;;) {
		length = sizeof(from);
		bytes = recvfrom((int)(intptr_t)receiver, taken, sizeof(taken), 0,
				 (struct sockaddr *)&from, &length);
		if (bytes > 0)
			sendto((int)(intptr_t)receiver, taken, bytes, 0, (struct sockaddr *)&from,
			       length);
	}
	return NULL;
}

/* The answering thread inherits CPU and priority. */
static void udp_rr(int sender, int receiver, uint64_t for_ns)
{
	uint64_t start, begin, end, packets = 0;
	pthread_t thread;

	if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)receiver))
		errx(2, "no thread");
	start = end = now_ns();
	do {
		begin = end;
		if (send(sender, buffer, payload_bytes, 0) != payload_bytes ||
		    recv(sender, buffer, sizeof(buffer), 0) != payload_bytes)
			err(2, "a datagram was lost");
		packets += 2;
		end = now_ns();
		note_time(end - begin);
	} while (end - start < for_ns);
	tell(packets, packets * payload_bytes, end - start);
}

static uint64_t arrived; /* the receiving thread's */

static void *take(void *receiver)
{
	static char taken[sizeof(buffer)];

	pin_to_cpu(1);
	for (;;)
		if (recv((int)(intptr_t)receiver, taken, sizeof(taken), 0) > 0)
			__atomic_fetch_add(&arrived, 1, __ATOMIC_RELAXED);
	return NULL;
}

/* The receiving thread inherits the priority: nobody takes its CPU away either. */
static void udp_two(int sender, int receiver, uint64_t for_ns)
{
	uint64_t start, end;
	pthread_t thread;

	alone();
	if (pthread_create(&thread, NULL, take, (void *)(intptr_t)receiver))
		errx(2, "no thread");
	start = now_ns();
	do {
		for (int i = 0; i < BURST; i++)
			if (send(sender, buffer, payload_bytes, 0) != payload_bytes)
				err(2, "send");
		end = now_ns();
	} while (end - start < for_ns);
	start = end - start;
	usleep(10000); /* what has been sent is taken out */
	end = __atomic_load_n(&arrived, __ATOMIC_RELAXED);
	tell(end, end * payload_bytes, start);
}

static void tcp(int sender, int receiver, uint64_t for_ns)
{
	struct pollfd wait[2] = {{.fd = sender, .events = POLLOUT},
				 {.fd = receiver, .events = POLLIN}};
	uint64_t start = now_ns(), end, reads = 0, bytes = 0;
	ssize_t moved;

	do {
		if (poll(wait, 2, 1000) <= 0)
			err(2, "the stream stands still");
		while (send(sender, buffer, 1 << 16, MSG_DONTWAIT) > 0)
			;
		while ((moved = recv(receiver, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0) {
			bytes += moved;
			reads++;
		}
		end = now_ns();
	} while (end - start < for_ns);
	tell(reads, bytes, end - start);
}

/* Each connection has a thread's whole attention: one request, one response, until it is closed. */
static void *serve(void *listener)
{
	static char taken[sizeof(buffer)];
	ssize_t bytes;
	int one;

	for (;;) {
		one = accept((int)(intptr_t)listener, NULL, NULL);
		if (one < 0)
			continue;
		while ((bytes = recv(one, taken, sizeof(taken), 0)) > 0)
			if (send(one, taken, bytes, MSG_NOSIGNAL) != bytes)
				break;
		close(one);
	}
	return NULL;
}

/* This thread is in the sender's namespace. */
static void churn(int listener, uint64_t for_ns)
{
	uint64_t start, begin, end, connections = 0;
	pthread_t thread;
	int one;

	if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener))
		errx(2, "no thread");
	start = end = now_ns();
	do {
		begin = end;
		one = socket(AF_INET, SOCK_STREAM, 0);
		if (one < 0 || connect(one, (struct sockaddr *)&address, sizeof(address)) ||
		    send(one, buffer, payload_bytes, 0) != payload_bytes ||
		    recv(one, buffer, sizeof(buffer), 0) != payload_bytes)
			err(2, "a connection failed");
		close(one);
		connections++;
		end = now_ns();
		note_time(end - begin);
	} while (end - start < for_ns);
	tell(connections, 2 * connections * payload_bytes, end - start);
}

static void over_udp(const char *mode, int sender, int receiver, uint64_t for_ns)
{
	int room_bytes = RECEIVER_ROOM_BYTES;

	setsockopt(receiver, SOL_SOCKET, SO_RCVBUFFORCE, &room_bytes, sizeof(room_bytes));
	udp_burst(sender, receiver, 1); /* the neighbour is known after this */
	if (!strcmp(mode, "udp-two"))
		udp_two(sender, receiver, for_ns);
	alone();
	(strcmp(mode, "udp") ? udp_rr : udp)(sender, receiver, for_ns);
}

static void over_tcp(const char *mode, int sender, int listener, uint64_t for_ns)
{
	int receiver;

	alone();
	if (!strcmp(mode, "churn"))
		churn(listener, for_ns);
	if (connect(sender, (struct sockaddr *)&address, sizeof(address)))
		err(2, "connect");
	receiver = accept(listener, NULL, NULL);
	if (receiver < 0)
		err(2, "accept");
	tcp(sender, receiver, for_ns);
}

int main(int argc, char **argv)
{
	int type, sender, receiver;
	uint64_t for_ns;

	if (argc != 7 || inet_pton(AF_INET, argv[4], &address.sin_addr) != 1)
		errx(2, "usage: blast MODE FROM_NETNS TO_NETNS ADDRESS MILLISECONDS PAYLOAD_BYTES");
	type = strncmp(argv[1], "udp", 3) ? SOCK_STREAM : SOCK_DGRAM;
	for_ns = strtoull(argv[5], NULL, 10) * 1000000;
	payload_bytes = atoi(argv[6]);
	address.sin_port = htons(PORT);
	pin_to_cpu(0);
	if (setpriority(PRIO_PROCESS, 0, -20))
		err(2, "priority");

	receiver = socket_in(argv[3], type);
	setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(receiver, (struct sockaddr *)&address, sizeof(address)) ||
	    (type == SOCK_STREAM && listen(receiver, BURST)))
		err(2, "bind");
	sender = socket_in(argv[2], type);
	if (type == SOCK_STREAM)
		over_tcp(argv[1], sender, receiver, for_ns);
	if (connect(sender, (struct sockaddr *)&address, sizeof(address)))
		err(2, "connect");
	over_udp(argv[1], sender, receiver, for_ns);
	return 0;
}
