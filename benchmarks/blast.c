/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pod-to-pod traffic as fast as one CPU makes it, without the loss of one packet.
 *
 *   blast MODE SENDER_NETNS RECEIVER_NETNS RECEIVER_ADDRESS MILLISECONDS
 *
 *   udp     one thread sends a burst and takes it out again: nothing but the packets' way, the
 *           least that a packet can cost, and so the hardest measure of overhead
 *   udp-rr  request and response between two threads: each packet wakes somebody, as pods do
 *   tcp     one thread moves a stream
 *
 * prints "UNITS BYTES ELAPSED_NS": units are datagrams of 64 bytes, or reads of the stream.
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

#define PAYLOAD_BYTES 64
#define BURST 32
#define PORT 9

static char buffer[1 << 18];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
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
		if (send(sender, buffer, PAYLOAD_BYTES, 0) != PAYLOAD_BYTES)
			err(2, "send");
	}
	for (int i = 0; i < count; i++)
		if (recv(receiver, buffer, sizeof(buffer), 0) != PAYLOAD_BYTES)
			err(2, "a datagram was lost");
}

/* Nobody else on this CPU while it lasts; where that is not allowed, as few as may be. */
static void alone(void)
{
	struct sched_param first = {.sched_priority = 1};

	if (sched_setscheduler(0, SCHED_FIFO, &first))
		warn("no real-time priority");
}

static void pin_to_first_cpu(void)
{
	cpu_set_t first;

	CPU_ZERO(&first);
	CPU_SET(0, &first);
	if (sched_setaffinity(0, sizeof(first), &first))
		err(2, "cpu 0");
}

static void udp(int sender, int receiver, uint64_t for_ns)
{
	uint64_t start = now_ns(), end, packets = 0;

	do {
		udp_burst(sender, receiver, BURST);
		packets += BURST;
		end = now_ns();
	} while (end - start < for_ns);
	printf("%lu %lu %lu\n", packets, packets * PAYLOAD_BYTES, end - start);
}

static void *answer(void *receiver)
{
	static char taken[PAYLOAD_BYTES];
	struct sockaddr_in from;
	socklen_t length;

	for (;;) {
		length = sizeof(from);
		if (recvfrom((int)(intptr_t)receiver, taken, sizeof(taken), 0,
			     (struct sockaddr *)&from, &length) > 0)
			sendto((int)(intptr_t)receiver, taken, sizeof(taken), 0,
			       (struct sockaddr *)&from, length);
	}
	return NULL;
}

/* The answering thread inherits CPU and priority. */
static void udp_rr(int sender, int receiver, uint64_t for_ns)
{
	uint64_t start, end, packets = 0;
	pthread_t thread;

	if (pthread_create(&thread, NULL, answer, (void *)(intptr_t)receiver))
		errx(2, "no thread");
	start = now_ns();
	do {
		if (send(sender, buffer, PAYLOAD_BYTES, 0) != PAYLOAD_BYTES ||
		    recv(sender, buffer, sizeof(buffer), 0) != PAYLOAD_BYTES)
			err(2, "a datagram was lost");
		packets += 2;
		end = now_ns();
	} while (end - start < for_ns);
	printf("%lu %lu %lu\n", packets, packets * PAYLOAD_BYTES, end - start);
	fflush(stdout);
	_exit(0);
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
	printf("%lu %lu %lu\n", reads, bytes, end - start);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
	int type, sender, receiver, listener;
	uint64_t for_ns;

	if (argc != 6 || inet_pton(AF_INET, argv[4], &address.sin_addr) != 1)
		errx(2, "usage: blast udp|udp-rr|tcp FROM_NETNS TO_NETNS ADDRESS MILLISECONDS");
	type = strcmp(argv[1], "tcp") ? SOCK_DGRAM : SOCK_STREAM;
	for_ns = strtoull(argv[5], NULL, 10) * 1000000;
	pin_to_first_cpu();
	if (setpriority(PRIO_PROCESS, 0, -20))
		err(2, "priority");

	receiver = socket_in(argv[3], type);
	setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	if (bind(receiver, (struct sockaddr *)&address, sizeof(address)) ||
	    (type == SOCK_STREAM && listen(receiver, 1)))
		err(2, "bind");
	sender = socket_in(argv[2], type);
	if (connect(sender, (struct sockaddr *)&address, sizeof(address)))
		err(2, "connect");
	if (type == SOCK_STREAM) {
		listener = receiver;
		receiver = accept(listener, NULL, NULL);
		if (receiver < 0)
			err(2, "accept");
		alone();
		tcp(sender, receiver, for_ns);
		return 0;
	}
	udp_burst(sender, receiver, 1); /* the neighbour is known after this */
	alone();
	(strcmp(argv[1], "udp") ? udp_rr : udp)(sender, receiver, for_ns);
	return 0;
}
