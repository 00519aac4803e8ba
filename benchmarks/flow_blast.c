/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of many flows, each of which is known: who sent how many of how many bytes, which were
 * made to be dropped on their way, and which were answered.
 *
 *   flow_blast FROM_NETNS TO_NETNS ADDRESS PORT PORTS ADDRESSES DOOMED_PERCENT ANSWERED_PERCENT
 *
 * A flow is one of PORTS sockets (bound to FIRST_PORT and on) to PORT of one of ADDRESSES (ADDRESS
 * and on). Whatever happens to it on its way, SERVER_PORT of TO_NETNS receives it. Reads numbers
 * from stdin; for each it sends so many packets, the first of them one for each flow, the others
 * in no order, prints "sent" when all that was to arrive has arrived, and ends with exit code 2
 * when a packet is missing. A doomed packet is told by its length, DOOMED_BYTES from the network
 * header on: a rule on the way drops it. At the end of stdin prints a line for each flow:
 *
 *   PORT ADDRESS_NUMBER SENT BYTES DOOMED BYTES ANSWERED BYTES
 *
 * Bytes are from the network header on; sent counts the doomed too.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define FIRST_PORT 20000
#define SERVER_PORT 8080
#define BURST 32
#define HEADER_BYTES 28
#define DOOMED_BYTES 228

struct tally {
	uint64_t packets;
	uint64_t bytes;
};

struct flow {
	struct tally sent;
	struct tally doomed;
	struct tally answered;
};

struct packet {
	uint32_t flow;
	uint16_t answer_bytes; /* 0: no answer */
	uint16_t bytes;
};

static struct flow *flows;
static uint32_t ports, addresses, doomed_percent, answered_percent;
static struct in_addr first_address;
static uint16_t to_port;
static int server, *clients;
static char buffer[512];

static uint64_t dice(void)
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

/* A socket belongs to the namespace in which it was made, whoever uses it. */
static void enter(const char *netns)
{
	int namespace = open(netns, O_RDONLY | O_CLOEXEC);

	if (namespace < 0 || setns(namespace, CLONE_NEWNET))
		err(2, "%s", netns);
	close(namespace);
}

static int bound(uint16_t port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct timeval patience = {.tv_sec = 5};
	int made = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;

	if (made < 0 || bind(made, (struct sockaddr *)&here, sizeof(here)))
		err(2, "port %u", port);
	setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(made, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on));
	return made;
}

static void count(struct tally *tally, uint32_t payload_bytes)
{
	tally->packets++;
	tally->bytes += payload_bytes + HEADER_BYTES;
}

static void send_one(struct packet *packet)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(to_port)};
	struct flow *flow = &flows[packet->flow];
	int doomed = dice() % 100 < doomed_percent;

	packet->answer_bytes = 0;
	packet->bytes = sizeof(*packet) + dice() % 64;
	if (doomed)
		packet->bytes = DOOMED_BYTES - HEADER_BYTES;
	else if (dice() % 100 < answered_percent)
		packet->answer_bytes = 100 + dice() % 64;
	memcpy(buffer, packet, sizeof(*packet));
	to.sin_addr.s_addr = htonl(ntohl(first_address.s_addr) + packet->flow / ports);
	if (sendto(clients[packet->flow % ports], buffer, packet->bytes, 0, (struct sockaddr *)&to,
		   sizeof(to)) != packet->bytes)
		err(2, "send");
	count(&flow->sent, packet->bytes);
	if (doomed) {
		count(&flow->doomed, packet->bytes);
		packet->bytes = 0;
	}
}

/* Take the packet out, and answer from the address that it was sent to. */
static void receive_one(const struct packet *expected)
{
	struct sockaddr_in from;
	struct iovec part = {.iov_base = buffer, .iov_len = sizeof(buffer)};
	char control[CMSG_SPACE(sizeof(struct in_pktinfo))];
	struct msghdr message = {.msg_name = &from,
				 .msg_namelen = sizeof(from),
				 .msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control,
				 .msg_controllen = sizeof(control)};
	struct in_pktinfo *info = (void *)CMSG_DATA((struct cmsghdr *)control);

	if (recvmsg(server, &message, 0) != expected->bytes)
		err(2, "a packet of %u bytes did not arrive", expected->bytes);
	if (memcmp(buffer, expected, sizeof(*expected)))
		errx(2, "another packet arrived");
	if (!expected->answer_bytes)
		return;
	info->ipi_ifindex = 0;
	info->ipi_spec_dst = info->ipi_addr;
	part.iov_len = expected->answer_bytes;
	if (sendmsg(server, &message, 0) != expected->answer_bytes)
		err(2, "answer");
	if (recv(clients[expected->flow % ports], buffer, sizeof(buffer), 0) !=
	    expected->answer_bytes)
		err(2, "an answer did not arrive");
	count(&flows[expected->flow].answered, expected->answer_bytes);
}

static void send_packets(uint64_t packets)
{
	struct packet burst[BURST];
	uint32_t number, many = ports * addresses;
	uint64_t sent = 0;

	while (sent < packets) {
		for (number = 0; number < BURST && sent < packets; number++, sent++) {
			burst[number].flow = sent < many ? sent : dice() % many;
			send_one(&burst[number]);
		}
		for (uint32_t one = 0; one < number; one++)
			if (burst[one].bytes)
				receive_one(&burst[one]);
	}
}

static void print_flows(void)
{
	for (uint32_t number = 0; number < ports * addresses; number++) {
		const struct flow *flow = &flows[number];

		printf("%u %u %lu %lu %lu %lu %lu %lu\n", FIRST_PORT + number % ports,
		       number / ports, flow->sent.packets, flow->sent.bytes, flow->doomed.packets,
		       flow->doomed.bytes, flow->answered.packets, flow->answered.bytes);
	}
}

int main(int argc, char **argv)
{
	unsigned long packets;

	if (argc != 9 || inet_pton(AF_INET, argv[3], &first_address) != 1)
		errx(2, "usage: flow_blast FROM TO ADDRESS PORT PORTS ADDRESSES DOOMED ANSWERED");
	to_port = atoi(argv[4]);
	ports = atoi(argv[5]);
	addresses = atoi(argv[6]);
	doomed_percent = atoi(argv[7]);
	answered_percent = atoi(argv[8]);
	flows = calloc((size_t)ports * addresses, sizeof(*flows));
	clients = calloc(ports, sizeof(*clients));
	if (!flows || !clients)
		err(2, "memory");
	if (setrlimit(RLIMIT_NOFILE, &(struct rlimit){ports + 64, ports + 64}))
		err(2, "%u sockets", ports);
	enter(argv[2]);
	server = bound(SERVER_PORT);
	enter(argv[1]);
	for (uint32_t number = 0; number < ports; number++)
		clients[number] = bound(FIRST_PORT + number);
	while (scanf("%lu", &packets) == 1) {
		send_packets(packets);
		puts("sent");
		fflush(stdout);
	}
	print_flows();
	return 0;
}
