/* frames send WHO GATEWAY ADDRESS GRANTED   from a pod, what its sockets are not asked for: a packet of each kind
 *                                           below, to the MAC of its gateway, and then an honest datagram, its end
 * frames watch INTERFACE                    what arrives there, told as "WHO KIND", until an honest end does
 *
 *     syn      to ADDRESS, as AF_PACKET sends it
 *     syn6     the same of IPv6, from an address that nobody has
 *     header   to GRANTED, with an IP header of one's own (raw(7), IP_HDRINCL), from an address that nobody has
 *     vlan     to ADDRESS, with a tag of 802.1Q
 *
 * All are SYNs, and the honest datagram goes to ADDRESS too. Each holds its name behind MARK.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MARK "frames: "
#define FOREIGN "203.0.113.9"
#define FOREIGN6 "fe80::f0:e19"
#define NOWHERE6 "2001:db8::1"

enum { PORT = 80, DISCARD = 9, SIZE = 512, VLAN = 5 };

static const char *who, *device = "eth0";

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static unsigned checksum(const void *data, int length, unsigned sum)
{
	const unsigned char *at = data;

	for (int i = 0; i < length; i++)
		sum += i % 2 ? at[i] : at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* A segment that holds its name; `sum` is that of both addresses. Its length. */
static int put_segment(void *to, const char *kind, unsigned sum)
{
	struct tcphdr head = {.source = htons(4321), .dest = htons(PORT), .doff = 5, .syn = 1, .window = 255};
	int length = sizeof(head) + sprintf((char *)to + sizeof(head), MARK "%s %s", who, kind);

	memcpy(to, &head, sizeof(head));
	head.check = htons(~checksum(to, length, sum + IPPROTO_TCP + length));
	memcpy(to, &head, sizeof(head));
	return length;
}

static int put_packet(void *to, const char *kind, in_addr_t from, const char *address)
{
	struct iphdr head = {.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .saddr = from};
	int length;

	inet_pton(AF_INET, address, &head.daddr);
	length = sizeof(head) + put_segment((char *)to + sizeof(head), kind, checksum(&head.saddr, 8, 0));
	head.tot_len = htons(length);
	head.check = htons(~checksum(&head, sizeof(head), 0));
	memcpy(to, &head, sizeof(head));
	return length;
}

static int put_packet6(void *to, const char *kind)
{
	struct ip6_hdr head = {.ip6_flow = htonl(6U << 28), .ip6_nxt = IPPROTO_TCP, .ip6_hlim = 64};
	int length;

	inet_pton(AF_INET6, FOREIGN6, &head.ip6_src);
	inet_pton(AF_INET6, NOWHERE6, &head.ip6_dst);
	length = put_segment((char *)to + sizeof(head), kind, checksum(&head.ip6_src, 32, 0));
	head.ip6_plen = htons(length);
	memcpy(to, &head, sizeof(head));
	return sizeof(head) + length;
}

static void told(const char *kind, ssize_t sent)
{
	printf("%s: %s\n", kind, sent < 0 ? strerror(errno) : "sent");
}

static int find_own(struct ifreq *mac, struct ifreq *address)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0), failed;

	strcpy(mac->ifr_name, device);
	strcpy(address->ifr_name, device);
	failed = ioctl(sock, SIOCGIFHWADDR, mac) || ioctl(sock, SIOCGIFADDR, address);
	close(sock);
	return failed;
}

static void send_header(const char *granted)
{
	int sock = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	struct sockaddr_in to = {.sin_family = AF_INET};
	char packet[SIZE];
	int length = put_packet(packet, "header", inet_addr(FOREIGN), granted);

	inet_pton(AF_INET, granted, &to.sin_addr);
	told("header", sendto(sock, packet, length, 0, (void *)&to, sizeof(to)));
	close(sock);
}

static void send_honest(const char *address)
{
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(DISCARD)};
	char data[SIZE];
	int length = sprintf(data, MARK "%s end", who);

	inet_pton(AF_INET, address, &to.sin_addr);
	told("end", sendto(sock, data, length, 0, (void *)&to, sizeof(to)));
	close(sock);
}

static int send_all(const char *gateway, const char *address, const char *granted)
{
	struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(device)};
	int sock = socket(AF_PACKET, SOCK_RAW, 0), length;
	struct ifreq mac = {}, own = {};
	unsigned char frame[SIZE], *to = frame + ETH_HLEN;
	const unsigned short tag[2] = {htons(VLAN), htons(ETHERTYPE_IP)};
	struct ether_header head;
	in_addr_t here;

	if (find_own(&mac, &own) || sock < 0 || bind(sock, (void *)&link, sizeof(link)))
		return fail("frames");
	here = ((struct sockaddr_in *)&own.ifr_addr)->sin_addr.s_addr;
	memcpy(head.ether_shost, mac.ifr_hwaddr.sa_data, ETH_ALEN);
	if (sscanf(gateway, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &head.ether_dhost[0], &head.ether_dhost[1],
		   &head.ether_dhost[2], &head.ether_dhost[3], &head.ether_dhost[4], &head.ether_dhost[5]) != 6)
		return 2;
	head.ether_type = htons(ETHERTYPE_IP);
	memcpy(frame, &head, ETH_HLEN);
	length = put_packet(to, "syn", here, address);
	told("syn", send(sock, frame, ETH_HLEN + length, 0));
	head.ether_type = htons(ETHERTYPE_IPV6);
	memcpy(frame, &head, ETH_HLEN);
	length = put_packet6(to, "syn6");
	told("syn6", send(sock, frame, ETH_HLEN + length, 0));
	send_header(granted);
	head.ether_type = htons(ETHERTYPE_VLAN);
	memcpy(frame, &head, ETH_HLEN);
	memcpy(to, tag, sizeof(tag));
	length = put_packet(to + sizeof(tag), "vlan", here, address);
	told("vlan", send(sock, frame, ETH_HLEN + sizeof(tag) + length, 0));
	send_honest(address);
	return 0;
}

static int watch(const char *interface)
{
	struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int sock = socket(AF_PACKET, SOCK_RAW, 0);
	char frame[2048], *name;
	ssize_t length;

	link.sll_ifindex = if_nametoindex(interface);
	if (sock < 0 || !link.sll_ifindex || bind(sock, (void *)&link, sizeof(link)))
		return fail(interface);
	puts("watching");
	do {
		fflush(stdout);
		name = NULL;
		length = recv(sock, frame, sizeof(frame) - 1, 0);
		if (length > 0)
			name = memmem(frame, length, MARK, strlen(MARK));
		if (!name)
			continue;
		frame[length] = 0;
		name += strlen(MARK);
		puts(name);
	} while (!name || !strstr(name, " end"));
	return 0;
}

int main(int words, char **word)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (words == 6 && !strcmp(word[1], "send")) {
		who = word[2];
		return send_all(word[3], word[4], word[5]);
	}
	if (words == 3 && !strcmp(word[1], "watch"))
		return watch(word[2]);
	return 2;
}
