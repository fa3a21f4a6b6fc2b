/* resolve NAME PORT: what any C program does. One line for each address: whether a connection was made, and
 * after how long. Built against glibc and against musl, whose resolver asks for A and AAAA at once from one
 * socket. */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int count, char **words)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
	int failed, worked = 0;

	failed = count == 3 ? getaddrinfo(words[1], words[2], &hints, &list) : EAI_NONAME;
	if (failed) {
		printf("getaddrinfo: %s\n", gai_strerror(failed));
		return 2;
	}
	for (struct addrinfo *at = list; at; at = at->ai_next) {
		char text[64];
		int sock = socket(at->ai_family, at->ai_socktype, at->ai_protocol);
		double start = now();
		int done = connect(sock, at->ai_addr, at->ai_addrlen);
		int why = errno;

		getnameinfo(at->ai_addr, at->ai_addrlen, text, sizeof(text), NULL, 0, NI_NUMERICHOST);
		printf("%s %s %.3f\n", text, done ? strerror(why) : "connected", now() - start);
		worked += !done;
		close(sock);
	}
	return worked ? 0 : 1;
}
