// What nearly every packet is: a plain one, of a live flow or the first of a new one. Read by direct access.
//
// Plain: IPv4 without options or fragment, or IPv6 without extension headers; TCP without FIN, RST or an answer to a SYN,
// or UDP; between the endpoint's first address and a port where no trusted resolver listens, and not DHCP. Whatever is
// not said of such a packet here is ``handle``'s, which parses again; of what is said, ``handle`` would say the same.
// For a live flow the working memory is not touched but for the clock: the key is on the stack.

// DHCP passes by conditions of its own: see is_dhcp4, is_dhcp6.
static INLINE int is_dhcp_server(__u16 port_be)
{
    return port_be == bpf_htons(PORT_DHCP_SERVER) || port_be == bpf_htons(PORT_DHCP6_SERVER);
}

struct plain {
    struct flow_key key;
    __u8 tcp_flags;
    __u8 pad[7];
};

static INLINE int read_plain_transport(const struct l4_header *l4, void *end, __u32 room, __u8 protocol, int direction,
                                       __u32 ifindex, struct plain *plain)
{
    plain->tcp_flags = 0;
    if (protocol == PROTOCOL_TCP) {
        __u32 header;
        __u8 flags;

        if ((void *)l4 + sizeof(*l4) > end)
            return 0;
        header = (l4->data_offset >> 4) * 4;
        flags = l4->flags;
        if (header < sizeof(*l4) || header > room || flags & (TCP_FIN | TCP_RST) ||
            (flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
            return 0;
        plain->tcp_flags = flags;
    } else if (protocol == PROTOCOL_UDP) {
        __u32 length;

        if ((void *)l4 + 8 > end)
            return 0;
        length = bpf_ntohl(l4->sequence_be) >> 16;
        if (length < 8 || length > room || is_dhcp_server(direction == EGRESS ? l4->destination_be : l4->source_be))
            return 0;
    } else {
        return 0;
    }
    if (direction == EGRESS)
        fill_key(&plain->key, ifindex, l4->source_be, l4->destination_be, protocol, 0);
    else
        fill_key(&plain->key, ifindex, l4->destination_be, l4->source_be, protocol, 0);
    return 1;
}

static INLINE int read_plain4(struct __sk_buff *skb, struct endpoint *ep, int direction, struct plain *plain)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv4_header *ip = data + ETHER_BYTES;
    __u32 length, own;

    if ((void *)(ip + 1) > end || ip->version_ihl != 0x45 || ip->fragment_be & bpf_htons(0x3fff))
        return 0;
    length = bpf_ntohs(ip->length_be);
    own = direction == EGRESS ? ip->source : ip->destination;
    if (length < sizeof(*ip) || ETHER_BYTES + length > skb->len || !own || own != ep->address4)
        return 0;
    set_mapped(&plain->key.peer, direction == EGRESS ? ip->destination : ip->source);
    return read_plain_transport((void *)(ip + 1), end, length - sizeof(*ip), ip->protocol, direction, ep->ifindex, plain);
}

static INLINE int read_plain6(struct __sk_buff *skb, struct endpoint *ep, int direction, struct plain *plain)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv6_header *ip = data + ETHER_BYTES;
    __u32 length;

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
        return read_plain4(skb, ep, direction, plain) && !is_resolver_port(plain->key.peer_port_be);
    if (skb->protocol == bpf_htons(ETHER_IPV6))
        return read_plain6(skb, ep, direction, plain) && !is_resolver_port(plain->key.peer_port_be);
    return 0;
}

// Whether a live flow, judged under today's epoch, covers this packet; then it is counted in the flow.
static INLINE int is_established(struct __sk_buff *skb, struct scratch *s, const struct plain *plain, struct flow *flow,
                                 int direction, __u64 epoch)
{
    __u32 ticks, expires;

    if (flow->epoch != epoch || plain->tcp_flags & TCP_SYN)
        return 0;
    ticks = read_ticks(s);
    if ((__s32)(flow->expires - ticks) < 0 || flow->state & (FLOW_FIN_OPENER | FLOW_FIN_REPLY | FLOW_RESET))
        return 0;
    if (direction != flow->direction && !(flow->state & FLOW_ANSWERED)) // the first reply promotes it
        return 0;
    count_in_flow(flow, direction != flow->direction, skb->len);
    expires = ticks + find_timeout(plain->key.protocol, flow->state);
    if (expires != flow->expires)
        flow->expires = expires;
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
