// What nearly every packet is: a plain one, of a live flow or the first of a new one. Read by direct access.
//
// Plain: IPv4 without options or fragment, or IPv6 without extension headers; TCP without FIN, RST or an answer to a SYN,
// or UDP; to or from the endpoint's first address, and not DHCP. Whatever is not said of such a packet here is
// ``handle``'s, which parses again; of what is said, ``handle`` would say the same. What passes at a port where trusted
// resolvers listen is read first: datagrams by ``handle_datagram``, which need not parse again, TCP by ``handle``.
// For a live flow of TCP neither settings nor working memory are touched, but once in a while: the key is on the stack.

// DHCP passes by conditions of its own: see is_dhcp4, is_dhcp6.
static INLINE int is_dhcp_server(__u16 port_be)
{
    return port_be == bpf_htons(PORT_DHCP_SERVER) || port_be == bpf_htons(PORT_DHCP6_SERVER);
}

struct plain {
    struct flow_key key;
    __u8 tcp_flags;
    __u8 pad[3];
    __u32 udp_bytes;
};

// ``room``: bytes behind the IP header, less than none where the packet says that it is shorter than that.
static INLINE int read_plain_transport(const struct l4_header *l4, void *end, __s64 room, __u8 protocol, int direction,
                                       __u32 ifindex, struct plain *plain)
{
    __u64 ports;

    plain->tcp_flags = 0;
    plain->udp_bytes = 0;
    if (protocol == PROTOCOL_TCP) {
        __u64 header, flags;

        if ((void *)l4 + sizeof(*l4) > end)
            return 0;
        header = (l4->data_offset >> 4) * 4;
        flags = l4->flags;
        if (header < sizeof(*l4) || (__s64)header > room || flags & (TCP_FIN | TCP_RST) ||
            (flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
            return 0;
        plain->tcp_flags = flags;
    } else if (protocol == PROTOCOL_UDP) {
        __s64 length;

        if ((void *)l4 + 8 > end)
            return 0;
        length = bpf_ntohs(l4->sequence_be);
        if (length < 8 || length > room || is_dhcp_server(direction == EGRESS ? l4->destination_be : l4->source_be))
            return 0;
        plain->udp_bytes = length;
    } else {
        return 0;
    }
    ports = l4->ports;
    plain->key.interface_ports = (direction == EGRESS ? ports << 32 : ports << 48 | ports >> 16 << 32) | ifindex;
    plain->key.protocol_address = protocol;
    return 1;
}

static INLINE int read_plain4(struct __sk_buff *skb, struct endpoint *ep, int direction, struct plain *plain)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv4_header *ip = data + ETHER_BYTES;
    __u64 length;
    __u32 own;

    if ((void *)(ip + 1) > end || ip->version_ihl != 0x45 || ip->fragment_be & bpf_htons(0x3fff))
        return 0;
    length = bpf_ntohs(ip->length_be);
    own = direction == EGRESS ? ip->source : ip->destination;
    if (ETHER_BYTES + length > skb->len || !own || own != ep->address4)
        return 0;
    set_mapped(&plain->key.peer, direction == EGRESS ? ip->destination : ip->source);
    return read_plain_transport((void *)(ip + 1), end, length - sizeof(*ip), ip->protocol, direction, ep->ifindex, plain);
}

static INLINE int read_plain6(struct __sk_buff *skb, struct endpoint *ep, int direction, struct plain *plain)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv6_header *ip = data + ETHER_BYTES;
    __u64 length;

    if ((void *)(ip + 1) > end || *(__u8 *)ip >> 4 != 6)
        return 0;
    length = bpf_ntohs(ip->length_be);
    if (!length || ETHER_BYTES + sizeof(*ip) + length > skb->len || is_unspecified(&ep->address6) ||
        !is_same_address(direction == EGRESS ? &ip->source : &ip->destination, &ep->address6))
        return 0;
    plain->key.peer = direction == EGRESS ? ip->destination : ip->source;
    if (is_mapped(&plain->key.peer) || is_mapped(&ep->address6)) // its flow would be an IPv4 one's
        return 0;
    return read_plain_transport((void *)(ip + 1), end, length, ip->next, direction, ep->ifindex, plain);
}

static INLINE int read_plain(struct __sk_buff *skb, struct endpoint *ep, int direction, struct plain *plain)
{
    if (ep->flags & ENDPOINT_CLAIMED_TWICE)
        return 0;
    if (skb->protocol == bpf_htons(ETHER_IPV4))
        return read_plain4(skb, ep, direction, plain);
    if (skb->protocol == bpf_htons(ETHER_IPV6))
        return read_plain6(skb, ep, direction, plain);
    return 0;
}

// A packet makes the flow's time begin anew, and so does the first of those that come within RENEW_JIFFIES, which are less
// than half a tick. 0: that time is over.
#define RENEW_JIFFIES 32
static INLINE int renew(const struct plain *plain, struct flow *flow, struct tally *tally, __u32 now)
{
    struct scratch *s = find_scratch();
    __u32 ticks;

    if (!s)
        return 0;
    ticks = read_ticks(s);
    if ((__s32)(flow->expires - ticks) < 0)
        return 0;
    flow->expires = ticks + find_timeout(plain->key.protocol, flow->state);
    tally->renewed = now;
    return 1;
}

// Whether a live flow, judged under today's epoch, covers this packet; then it is counted in the flow.
static INLINE int is_established(struct __sk_buff *skb, const struct plain *plain, struct flow *flow, int direction,
                                 __u64 epoch)
{
    int reply = direction != flow->direction;
    struct tally *tally = choose_tally(flow, reply);
    __u32 now = bpf_jiffies64() / RENEW_JIFFIES;

    if (flow->epoch != epoch || plain->tcp_flags & TCP_SYN || flow->dns & FLOW_DNS_PORT ||
        flow->state & (FLOW_FIN_OPENER | FLOW_FIN_REPLY | FLOW_RESET))
        return 0;
    if (reply && !(flow->state & FLOW_ANSWERED)) // the first reply promotes it
        return 0;
    if (tally->renewed != now && !renew(plain, flow, tally, now))
        return 0;
    count(tally, skb->len);
    return 1;
}

// What ``handle`` would leave in scratch for a plain packet that no flow covers.
static INLINE void begin_new(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, const struct plain *plain,
                             int direction, __u64 epoch)
{
    struct packet *p = &s->packet;
    struct address own = ep->address6;

    p->family = 6;
    if (skb->protocol == bpf_htons(ETHER_IPV4)) {
        set_mapped(&own, ep->address4);
        p->family = 4;
    }
    s->key = plain->key;
    p->source = direction == EGRESS ? own : plain->key.peer;
    p->destination = direction == EGRESS ? plain->key.peer : own;
    p->source_port_be = direction == EGRESS ? plain->key.own_port_be : plain->key.peer_port_be;
    p->destination_port_be = direction == EGRESS ? plain->key.peer_port_be : plain->key.own_port_be;
    p->protocol = plain->key.protocol;
    p->tcp_flags = plain->tcp_flags;
    p->fragment = FRAGMENT_WHOLE;
    p->icmp_type = p->shares_flow = 0;
    s->job.epoch = epoch;
    s->job.ticks = read_ticks(s);
    s->job.mode = MODE_NEW;
    s->job.direction = direction;
    s->job.related = 0;
    s->job.dns = DNS_NONE;
    s->job.hairpin = direction == INGRESS && skb->ingress_ifindex == skb->ifindex;
    s->job.step = STEP_PACKET;
    s->audited = 0;
}

// And for a plain datagram to or from a port where trusted resolvers listen.
static INLINE void begin_datagram(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, const struct plain *plain,
                                  int direction)
{
    struct packet *p = &s->packet;

    begin_new(skb, s, ep, plain, direction, 0);
    p->network = ETHER_BYTES;
    p->transport = ETHER_BYTES + (p->family == 4 ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header));
    p->payload = p->transport + 8;
    p->end = p->transport + plain->udp_bytes;
}
