// From a frame to the numbers that are judged: addresses, protocol, ports. What cannot be read has a reason.
//
// The plain cases (no VLAN tag in band, no IPv4 options, no extension headers, no fragment) are read by direct access;
// all others, and headers outside the linear part, by bpf_skb_load_bytes. Both fill the same ``struct packet``.
// Everything is kept in per-CPU scratch: what the verifier knows of a value ends with its store, so that the many ways
// through a parser meet again behind it.
//
// Deliberately absent: any look at policy, and checksums (the stack's affair).

#define INLINE inline __attribute__((always_inline))
#define FORGET(x) asm volatile("" : "+r"(x)) // keep the compiler from moving a bound away from its use

#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT 2

#define ETHER_IPV4 0x0800
#define ETHER_IPV6 0x86dd
#define ETHER_ARP 0x0806
#define ETHER_VLAN 0x8100
#define ETHER_QINQ 0x88a8
#define ETHER_BYTES 14
#define VLAN_BYTES 4

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_AUTHENTICATION 51
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION_OPTIONS 60
#define PROTOCOL_SCTP 132

#define MAX_EXTENSION_HEADERS 8
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

enum fragment_part { FRAGMENT_WHOLE = 0, FRAGMENT_FIRST = 1, FRAGMENT_LATER = 2 };

struct packet {
    struct address source;
    struct address destination;
    __u16 source_port_be; // ICMP echo: the identifier in both
    __u16 destination_port_be;
    __u8 protocol;
    __u8 family;   // 4, 6, 0: not IP
    __u8 tcp_flags;
    __u8 fragment; // enum fragment_part
    __u8 icmp_type;
    __u8 icmp_code;
    __u8 hop_limit;
    __u8 shares_flow; // enum shares: DNS with a trusted resolver
    __u32 fragment_id;
    __u32 fragment_offset; // bytes
    __u32 fragment_begin;  // offset of what is fragmented
    __u8 fragment_protocol; // what that begins with
    __u8 fragment_headers;  // see struct fragment
    __u8 pad[2];
    __u32 tcp_sequence;
    __u32 network; // offset of the IP or ARP header
    __u32 transport;
    __u32 payload; // offset behind the TCP or UDP header
    __u32 end;     // offset behind the IP packet
    __u32 cursor;
};

struct l4_header { // what the first 20 bytes of TCP, UDP, SCTP and ICMP share
    union {
        struct {
            __u16 source_be, destination_be;
        };
        __u32 ports;
    };
    __u32 sequence_be; // UDP: length, checksum. ICMP echo: identifier, sequence
    __u32 acknowledged_be;
    __u8 data_offset, flags;
    __u16 window;
    __u32 rest;
};

struct ipv4_header {
    __u8 version_ihl, tos;
    __u16 length_be;
    __u16 id_be;
    __u16 fragment_be;
    __u8 ttl, protocol;
    __u16 checksum;
    __u32 source, destination;
};

struct ipv6_header {
    __u32 version_class_flow;
    __u16 length_be;
    __u8 next, hop_limit;
    struct address source, destination;
};

// In whole halves: a load of what two narrower stores wrote waits until they have left the core.
static INLINE void set_mapped(struct address *to, __u32 ipv4)
{
    to->half[0] = 0;
    to->half[1] = (__u64)ipv4 << 32 | bpf_htonl(0xffff);
}

static INLINE int is_mapped(const struct address *a)
{
    return a->half[0] == 0 && a->word[2] == bpf_htonl(0xffff);
}

static INLINE int is_same_address(const struct address *a, const struct address *b)
{
    return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

static INLINE int is_unspecified(const struct address *a)
{
    return a->half[0] == 0 && a->half[1] == 0;
}

static INLINE int is_link_local6(const struct address *a)
{
    return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static INLINE int is_link_multicast6(const struct address *a)
{
    return (a->word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
}

static INLINE int is_multicast(const struct packet *p)
{
    if (p->family == 4)
        return (p->destination.byte[12] & 0xf0) == 0xe0 || p->destination.word[3] == 0xffffffff;
    return p->destination.byte[0] == 0xff;
}

static INLINE int has_ports(__u8 protocol)
{
    return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

static INLINE int is_echo(const struct packet *p)
{
    if (p->protocol == PROTOCOL_ICMP)
        return p->icmp_type == 8 || p->icmp_type == 0;
    return p->protocol == PROTOCOL_ICMPV6 && (p->icmp_type == 128 || p->icmp_type == 129);
}

// Take ports, flags and type from the transport header. ``room``: bytes of it that belong to the packet.
static INLINE int read_transport(struct packet *p, const struct l4_header *h, __u32 room)
{
    __u8 protocol = p->protocol;

    if (protocol == PROTOCOL_TCP) {
        __u32 header = (h->data_offset >> 4) * 4;
        __u8 flags = h->flags;

        if (room < 20 || header < 20 || header > room)
            return REASON_MALFORMED;
        if ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST)))
            return REASON_MALFORMED;
        p->tcp_flags = flags;
        p->tcp_sequence = bpf_ntohl(h->sequence_be);
        p->payload = p->transport + header;
    } else if (protocol == PROTOCOL_UDP) {
        __u32 length = bpf_ntohl(h->sequence_be) >> 16;

        // Length 0 is a segmented super-packet's. A fragment carries less than the datagram's length.
        if (room < 8 || (length && length < 8) || (length > room && p->fragment == FRAGMENT_WHOLE))
            return REASON_MALFORMED;
        p->payload = p->transport + 8;
        if (length && p->fragment == FRAGMENT_WHOLE)
            p->end = p->transport + length;
    } else if (protocol == PROTOCOL_SCTP) {
        if (room < 12)
            return REASON_MALFORMED;
    } else if (protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6) {
        if (room < 8)
            return REASON_MALFORMED;
        p->icmp_type = h->source_be & 0xff;
        p->icmp_code = h->source_be >> 8;
        if (is_echo(p)) {
            p->source_port_be = p->destination_port_be = h->sequence_be & 0xffff;
        }
        return 0;
    } else {
        return 0;
    }
    p->source_port_be = h->source_be;
    p->destination_port_be = h->destination_be;
    return 0;
}

static INLINE int load_transport(struct __sk_buff *skb, struct packet *p, struct l4_header *h)
{
    __u32 room = p->end - p->transport;
    __u8 protocol = p->protocol;

    if (p->transport > p->end)
        return REASON_MALFORMED;
    if (protocol == PROTOCOL_TCP) {
        if (room < 20 || bpf_skb_load_bytes(skb, p->transport, h, 20))
            return REASON_MALFORMED;
    } else if (has_ports(protocol) || protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6) {
        if (room < 8 || bpf_skb_load_bytes(skb, p->transport, h, 8))
            return REASON_MALFORMED;
    }
    return read_transport(p, h, room);
}

// IPv4 options: a source route makes the judged destination not the last one. The cursor lives in memory, where the
// verifier forgets it.
static INLINE int check_options(struct __sk_buff *skb, struct packet *p, __u8 *options, __u32 length)
{
    volatile __u32 *at = &p->cursor;
    __u64 size = length;

    size &= 63;
    FORGET(size);
    if (size == 0 || size > 40)
        return REASON_MALFORMED;
    if (bpf_skb_load_bytes(skb, p->network + sizeof(struct ipv4_header), options, size))
        return REASON_MALFORMED;
    *at = 0;
    for (int i = 0; i < 40; i++) {
        __u32 now = *at & 63;
        __u8 kind = options[now], step;

        if (now >= length || kind == 0)
            return 0;
        if (kind == 131 || kind == 137) // LSRR, SSRR: RFC 791
            return REASON_SOURCE_ROUTED;
        step = kind == 1 ? 1 : options[now + 1];
        if (step == 0 || (kind != 1 && step < 2) || now + step > length)
            return REASON_MALFORMED;
        *at = now + step;
    }
    return 0;
}

static INLINE void take_ipv4(struct packet *p, const struct ipv4_header *ip)
{
    p->family = 4;
    set_mapped(&p->source, ip->source);
    set_mapped(&p->destination, ip->destination);
    p->protocol = ip->protocol;
    p->hop_limit = ip->ttl;
}

static INLINE void take_ipv6(struct packet *p, const struct ipv6_header *ip)
{
    p->family = 6;
    p->source = ip->source;
    p->destination = ip->destination;
    p->hop_limit = ip->hop_limit;
}

// The end of the IP packet, or 0. A length of 0 is a super-packet's over 64 KiB.
static INLINE __u32 find_end(struct __sk_buff *skb, __u32 network, __u32 length, __u32 header)
{
    if (length == 0 && skb->gso_segs)
        return skb->len;
    if (length < header || network + length > skb->len)
        return 0;
    return network + length;
}

static INLINE int parse_ipv4_slow(struct __sk_buff *skb, struct packet *p, struct l4_header *h, __u8 *buffer)
{
    struct ipv4_header *ip = (struct ipv4_header *)buffer;
    __u32 header, fragment, reason;

    if (bpf_skb_load_bytes(skb, p->network, ip, sizeof(*ip)))
        return REASON_MALFORMED;
    header = (ip->version_ihl & 15) * 4;
    if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip))
        return REASON_MALFORMED;
    take_ipv4(p, ip);
    p->end = find_end(skb, p->network, bpf_ntohs(ip->length_be), header);
    if (!p->end)
        return REASON_MALFORMED;
    p->transport = p->network + header;
    fragment = bpf_ntohs(ip->fragment_be);
    p->fragment_id = ip->id_be;
    p->fragment_offset = (fragment & 0x1fff) * 8;
    p->fragment_begin = p->transport;
    p->fragment_protocol = p->protocol;
    if (header > sizeof(*ip)) {
        reason = check_options(skb, p, buffer + 32, header - sizeof(*ip));
        if (reason)
            return reason;
    }
    if (fragment & 0x1fff) {
        p->fragment = FRAGMENT_LATER;
        // A later fragment that reaches into the TCP header could change what was judged: RFC 3128.
        if (p->protocol == PROTOCOL_TCP && (fragment & 0x1fff) < 3)
            return REASON_MALFORMED;
        return 0;
    }
    p->fragment = fragment & 0x2000 ? FRAGMENT_FIRST : FRAGMENT_WHOLE;
    return load_transport(skb, p, h);
}

struct extension_header {
    __u8 next, length;
    __u16 fragment_be;
    __u32 id;
};

static INLINE int is_extension(__u8 protocol)
{
    return protocol == PROTOCOL_HOP_BY_HOP || protocol == PROTOCOL_ROUTING || protocol == PROTOCOL_FRAGMENT ||
           protocol == PROTOCOL_AUTHENTICATION || protocol == PROTOCOL_DESTINATION_OPTIONS;
}

// One extension header; 0, or a reason. Sets ``p->protocol`` to the next one.
static INLINE int skip_extension(struct __sk_buff *skb, struct packet *p, struct extension_header *e)
{
    __u8 kind = p->protocol;

    if (p->transport + 8 > p->end || bpf_skb_load_bytes(skb, p->transport, e, sizeof(*e)))
        return REASON_MALFORMED;
    p->protocol = e->next;
    if (kind == PROTOCOL_FRAGMENT) {
        __u32 fragment = bpf_ntohs(e->fragment_be);

        if (p->fragment != FRAGMENT_WHOLE)
            return REASON_MALFORMED;
        p->fragment_id = e->id;
        p->fragment_offset = fragment & 0xfff8;
        if (fragment & 0xfff8) {
            p->fragment = FRAGMENT_LATER;
            if (e->next == PROTOCOL_TCP && (fragment >> 3) < 3)
                return REASON_MALFORMED;
        } else if (fragment & 1) {
            p->fragment = FRAGMENT_FIRST;
        }
        p->transport += 8;
        p->fragment_begin = p->transport;
        p->fragment_protocol = e->next;
        return 0;
    }
    if (kind == PROTOCOL_ROUTING && (bpf_ntohs(e->fragment_be) & 0xff)) // segments left
        return REASON_SOURCE_ROUTED;
    if (kind == PROTOCOL_AUTHENTICATION)
        p->transport += (e->length + 2) * 4;
    else
        p->transport += (e->length + 1) * 8;
    return p->transport > p->end ? REASON_MALFORMED : 0;
}

static INLINE int check_ipv6_addresses(const struct packet *p)
{
    return is_mapped(&p->source) || is_mapped(&p->destination) ? REASON_MAPPED_ADDRESS : 0;
}

static INLINE int parse_ipv6_slow(struct __sk_buff *skb, struct packet *p, struct l4_header *h, __u8 *buffer)
{
    struct ipv6_header *ip = (struct ipv6_header *)buffer;
    struct extension_header *e = (struct extension_header *)(buffer + 48);
    int reason;

    if (bpf_skb_load_bytes(skb, p->network, ip, sizeof(*ip)) || (buffer[0] >> 4) != 6)
        return REASON_MALFORMED;
    take_ipv6(p, ip);
    p->protocol = ip->next;
    p->end = find_end(skb, p->network, bpf_ntohs(ip->length_be) ? bpf_ntohs(ip->length_be) + sizeof(*ip) : 0,
                      sizeof(*ip));
    if (!p->end && ip->length_be == 0 && ip->next == 59) // nothing behind the header
        p->end = p->network + sizeof(*ip);
    if (!p->end)
        return REASON_MALFORMED;
    reason = check_ipv6_addresses(p);
    if (reason)
        return reason;
    p->transport = p->network + sizeof(*ip);
    for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
        if (!is_extension(p->protocol) || p->fragment == FRAGMENT_LATER)
            break;
        reason = skip_extension(skb, p, e);
        if (reason)
            return reason;
    }
    if (p->fragment == FRAGMENT_LATER)
        return 0;
    if (is_extension(p->protocol))
        return REASON_TOO_MANY_HEADERS;
    return load_transport(skb, p, h);
}

// VLAN tags in band: what is behind them is judged as if they were not there. At most two.
static INLINE int skip_tags(struct __sk_buff *skb, struct packet *p, __u16 *ethertype)
{
    __u16 next = 0;

    for (int i = 0; i < 2; i++) {
        if (*ethertype != ETHER_VLAN && *ethertype != ETHER_QINQ)
            return 0;
        if (bpf_skb_load_bytes(skb, p->network + 2, &next, sizeof(next)))
            return REASON_MALFORMED;
        *ethertype = bpf_ntohs(next);
        p->network += VLAN_BYTES;
    }
    return 0;
}

static INLINE int parse_ipv4(struct __sk_buff *skb, struct packet *p, struct l4_header *h, __u8 *buffer)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv4_header *ip = data + ETHER_BYTES;
    struct l4_header *l4 = data + ETHER_BYTES + sizeof(*ip);

    if (p->network != ETHER_BYTES || (void *)l4 + 8 > end || ip->version_ihl != 0x45 ||
        (ip->fragment_be & bpf_htons(0x3fff)) || (ip->protocol == PROTOCOL_TCP && (void *)l4 + 20 > end) ||
        ip->length_be == 0)
        return parse_ipv4_slow(skb, p, h, buffer);
    take_ipv4(p, ip);
    p->transport = ETHER_BYTES + sizeof(*ip);
    p->end = ETHER_BYTES + bpf_ntohs(ip->length_be);
    if (p->end > skb->len || p->end < p->transport)
        return REASON_MALFORMED;
    if (ip->protocol == PROTOCOL_TCP) {
        if ((void *)l4 + 20 > end)
            return REASON_MALFORMED;
        return read_transport(p, l4, p->end - p->transport);
    }
    h->source_be = l4->source_be;
    h->destination_be = l4->destination_be;
    h->sequence_be = l4->sequence_be;
    return read_transport(p, h, p->end - p->transport);
}

static INLINE int parse_ipv6(struct __sk_buff *skb, struct packet *p, struct l4_header *h, __u8 *buffer)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv6_header *ip = data + ETHER_BYTES;
    struct l4_header *l4 = data + ETHER_BYTES + sizeof(*ip);

    if (p->network != ETHER_BYTES || (void *)l4 + 8 > end || (*(__u8 *)ip >> 4) != 6 ||
        (ip->next == PROTOCOL_TCP && (void *)l4 + 20 > end) ||
        (ip->next != PROTOCOL_TCP && ip->next != PROTOCOL_UDP && ip->next != PROTOCOL_ICMPV6) || ip->length_be == 0)
        return parse_ipv6_slow(skb, p, h, buffer);
    take_ipv6(p, ip);
    p->protocol = ip->next;
    p->transport = ETHER_BYTES + sizeof(*ip);
    p->end = p->transport + bpf_ntohs(ip->length_be);
    if (p->end > skb->len)
        return REASON_MALFORMED;
    if (check_ipv6_addresses(p))
        return REASON_MAPPED_ADDRESS;
    if (ip->next == PROTOCOL_TCP) {
        if ((void *)l4 + 20 > end)
            return REASON_MALFORMED;
        return read_transport(p, l4, p->end - p->transport);
    }
    h->source_be = l4->source_be;
    h->destination_be = l4->destination_be;
    h->sequence_be = l4->sequence_be;
    return read_transport(p, h, p->end - p->transport);
}

static INLINE void clear_packet(struct packet *p)
{
    __builtin_memset(p, 0, sizeof(*p));
    p->network = ETHER_BYTES;
}

// 0 or a reason. ARP is left to the caller: family 0, ``network`` behind the Ethernet header, PARSE_ARP.
#define PARSE_ARP 255
static INLINE int parse(struct __sk_buff *skb, struct packet *p, struct l4_header *h, __u8 *buffer)
{
    __u16 ethertype = bpf_ntohs(skb->protocol);

    clear_packet(p);
    if (ethertype == ETHER_IPV4)
        return parse_ipv4(skb, p, h, buffer);
    if (ethertype == ETHER_IPV6)
        return parse_ipv6(skb, p, h, buffer);
    if (skip_tags(skb, p, &ethertype))
        return REASON_MALFORMED;
    if (ethertype == ETHER_ARP)
        return PARSE_ARP;
    if (p->network == ETHER_BYTES)
        return REASON_UNKNOWN_ETHERTYPE;
    if (ethertype == ETHER_IPV4)
        return parse_ipv4_slow(skb, p, h, buffer);
    if (ethertype == ETHER_IPV6)
        return parse_ipv6_slow(skb, p, h, buffer);
    return REASON_UNKNOWN_ETHERTYPE;
}
