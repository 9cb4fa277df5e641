// What DNS answers teach: which addresses a name has, written before the answer is released to the pod that asked.
//
// A query that a pod sends to a trusted resolver is remembered in the endpoint's own array. An answer counts only if it
// comes from that resolver's address and port to the port that asked, bears the query's id, name and type, and came the
// way a node-local resolver's answers come. Then it has to be one question, class IN, A or AAAA, NOERROR.
//
// The message is read into scratch once. Every loop keeps its cursor there too: what the verifier forgets at each store
// makes the many ways through a message meet again. A record list of any length is walked in bites, by tail calls to
// self, and nothing is written before the whole message was found well formed.
//
// Over TCP a message is learned where it is whole in its segment and its place in the stream is known. Of what comes in
// more than one packet, or is longer than 4,095 bytes, the recorder gets the pieces; no packet waits for that.
//
// Here are questions; learn_walk.h reads answers, learn_write.h writes what they teach, learn_stream.h has TCP's.
// Deliberately absent: following compression pointers. Whose name a record bears is the resolver's affair; the answer's
// addresses belong to the name that was asked.
// Sources: RFC 1035 4.1, RFC 2181 8 (TTL), RFC 6891.

#define DNS_HEADER 12
#define DNS_MASK 4095 // message bytes that are read: MESSAGE_BYTES - 1
#define DNS_QUERY_MASK 511
#define NAME_WIRE_BYTES 255
#define NAME_WORDS 32
#define NAME_LABELS 128
#define TYPE_A 1
#define TYPE_CNAME 5
#define TYPE_AAAA 28
#define CLASS_IN 1
#define HEADER_TRUNCATED 2 // in the third byte
#define WALK_BITE 64   // records walked in one program
#define WRITE_BITE 16  // pages tried in one program
#define RECORDS 370    // of 11 bytes at least, in DNS_MASK
// Of 33 tail calls those that are left in the first learn_stream, which is one itself: before it come the program for
// packets that are not plain, and judging and finishing under the policies in force and under those on audit.
#define STREAM_CALLS (33 - 6)
#define OWNER_LABELS 16 // labels before a record's owner name ends or points
#define TEXT_END 259   // last byte of the reversed name: the dot of its first label; a NUL follows
#define HASH_BASIS 0xcbf29ce484222325ULL // the asker can only collide with itself
#define HASH_PRIME 0x100000001b3ULL

static INLINE __u64 mix(__u64 hash, __u64 word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 29;
}

static INLINE __u8 fold(__u8 c)
{
    return (__u8)(c - 'A') < 26 ? c | 0x20 : c;
}

#define BYTES(x) ((x) * 0x0101010101010101ULL) // eight bytes alike

// The same for eight bytes at once: of those from A to Z the highest bit is found, and moved to where the case is.
static INLINE __u64 fold_word(__u64 word)
{
    __u64 low = word & BYTES(0x7f);
    __u64 upper = (low + BYTES(0x80 - 'A')) & ~(low + BYTES(0x80 - 'Z' - 1)) & ~word & BYTES(0x80);

    return word | upper >> 2;
}

// How many of eight bytes are 0.
static INLINE __u32 count_zeros(__u64 word)
{
    __u64 not_zero = ((word & BYTES(0x7f)) + BYTES(0x7f)) | word;

    return (~not_zero >> 7 & BYTES(1)) * BYTES(1) >> 56;
}

// In one load each, wherever it lies; ``beyond`` follows the message in scratch.
static INLINE __u16 read_u16(const __u8 *message, __u32 at)
{
    return bpf_ntohs(*(const __u16 *)(message + (at & DNS_MASK)));
}

static INLINE __u32 read_u32(const __u8 *message, __u32 at)
{
    return bpf_ntohl(*(const __u32 *)(message + (at & DNS_MASK)));
}

// ----------------------------------------------------------------------------------------------------------------------
// The question.

// Where the asked name ends, label by label. 0, or a reason: compressed, too long, or of a kind that RFC 1035 has not.
static INLINE int find_name_end(struct dns *d, const __u8 *message)
{
    volatile __u32 *end = &d->cursor;
    volatile __u32 *dots = &d->dots;

    *end = DNS_HEADER;
    *dots = 0;
    for (int i = 0; i < NAME_LABELS; i++) {
        __u32 at = *end;
        __u8 length = message[at & DNS_MASK];

        if (!length)
            return 0;
        at += 1 + length;
        if (length > 63 || at >= DNS_HEADER + NAME_WIRE_BYTES)
            return REASON_LEARN_MALFORMED;
        *dots -= length == '.'; // no dot inside a label, though it looks like one
        *end = at;
    }
    return REASON_LEARN_MALFORMED;
}

// The first ``bytes`` of the asked name in its wire form, eight at a time: their hash and, into ``text``, they in lower
// case and reversed. Counts the dots and NULs among them.
static INLINE void read_words(struct scratch *s, __u32 bytes)
{
    struct dns *d = &s->dns;
    const volatile __u32 *size = &d->name_bytes;
    __u32 odd = d->dots;
    __u64 hash = HASH_BASIS;

    d->name_bytes = bytes;
    for (int i = 0; i < NAME_WORDS; i++) {
        __s32 left = *size - i * 8;
        __u64 word;

        if (left <= 0)
            break;
        word = *(const __u64 *)(s->event.message + DNS_HEADER + i * 8);
        if (left < 8) {
            word &= (1ULL << left * 8) - 1;
            odd -= 8 - left; // NULs that are not the name's
        }
        word = fold_word(word);
        odd += count_zeros(word) + count_zeros(word ^ BYTES('.'));
        hash = mix(hash, word);
        *(__u64 *)(s->text + TEXT_END - 7 - i * 8) = __builtin_bswap64(word);
    }
    d->dots = odd;
    d->name_hash = hash;
}

// In ``text`` a dot stands where the wire form has a label's length.
static INLINE void write_dots(struct scratch *s)
{
    volatile __u32 *cursor = &s->dns.cursor;

    *cursor = 0;
    for (int i = 0; i < NAME_LABELS; i++) {
        __u32 at = *cursor & 255;

        if (at >= s->dns.name_bytes)
            return;
        *cursor = at + 1 + s->event.message[DNS_HEADER + at];
        at = TEXT_END - at;
        FORGET(at);
        s->text[at & 511] = '.';
    }
}

// The asked name into ``text``, reversed, and its hash. 0, or a reason.
static INLINE int read_name(struct scratch *s)
{
    struct dns *d = &s->dns;
    int reason = find_name_end(d, s->event.message);
    __u32 bytes = d->cursor - DNS_HEADER;

    if (reason)
        return reason;
    read_words(s, bytes);
    if (s->event.message[2] >> 7) // of a question nobody asks for the text
        write_dots(s);
    d->bad_name = !bytes || d->dots; // the root has no addresses
    s->text[TEXT_END + 1] = 0;
    d->name_length = bytes ? bytes - 1 : 0;
    d->cursor = DNS_HEADER + bytes + 1;
    return 0;
}

// Header and question of the message of ``length`` bytes ``at`` this offset. 0, or a reason: then it is no DNS for us.
static INLINE int read_question(struct __sk_buff *skb, struct scratch *s, __u32 at, __u32 length, __u32 mask)
{
    struct dns *d = &s->dns;
    struct flow_key *key = &s->key;
    __u64 size;
    int reason;

    if (length < DNS_HEADER + 5)
        return REASON_LEARN_MALFORMED;
    d->truncated = length > mask;
    size = length > mask ? mask : length;
    FORGET(size);
    size &= mask;
    if (size < DNS_HEADER + 5 || bpf_skb_load_bytes(skb, at, s->event.message, size))
        return REASON_LEARN_MALFORMED;
    d->length = size;
    if (read_u16(s->event.message, 4) != 1 || s->event.message[2] & 0x78) // one question, opcode QUERY
        return REASON_LEARN_MALFORMED;
    reason = read_name(s);
    if (reason)
        return reason;
    if (d->cursor + 4 > d->length)
        return REASON_LEARN_MALFORMED;
    d->type = read_u16(s->event.message, d->cursor);
    d->class = read_u16(s->event.message, d->cursor + 2);
    d->cursor += 4;
    d->response = s->event.message[2] >> 7;
    d->id = read_u16(s->event.message, 0);
    d->hash = mix(d->name_hash, (__u64)d->type << 16 | d->class);
    d->hash = mix(mix(d->hash, key->peer.half[0]), key->peer.half[1]);
    d->hash = mix(d->hash, (__u64)key->ifindex << 32 | key->peer_port_be << 8 | key->own_address) | 1; // 0 is free
    return 0;
}

// ----------------------------------------------------------------------------------------------------------------------
// Queries that are out.

static INLINE struct query_set *find_queries(struct scratch *s, __u32 endpoint, __u16 port_be)
{
    __u32 set = (s->dns.id ^ s->dns.id >> 8 ^ port_be ^ port_be >> 8) & (QUERY_SETS - 1);
    __u32 index = (endpoint & (ENDPOINT_SLOTS - 1)) * QUERY_SETS + set;

    return queries.lookup(&index);
}

static INLINE int is_outstanding(const struct query *q, __u32 ticks)
{
    // Signed: the question may have been asked on a CPU whose clock has turned already.
    return q->hash && (__s32)(ticks - q->asked) <= (__s32)TICKS(QUERY_SECONDS);
}

static INLINE void record_query(struct scratch *s, struct endpoint *ep)
{
    struct query_set *set = find_queries(s, ep->id, s->packet.source_port_be);
    __u32 way = 0, oldest = 0xffffffff;

    if (!set)
        return;
#pragma unroll
    for (int i = 0; i < QUERY_WAYS; i++) {
        struct query *q = &set->way[i];
        __u32 age = is_outstanding(q, s->job.ticks) ? q->asked : 0;

        if (q->hash == s->dns.hash && q->id == s->dns.id && q->port_be == s->packet.source_port_be)
            age = 0; // asked again
        if (age < oldest) {
            oldest = age;
            way = i;
        }
    }
    way &= QUERY_WAYS - 1;
    set->way[way].hash = s->dns.hash;
    set->way[way].asked = s->job.ticks;
    set->way[way].id = s->dns.id;
    set->way[way].port_be = s->packet.source_port_be;
}

static INLINE int was_asked(struct scratch *s, struct endpoint *ep)
{
    struct query_set *set = find_queries(s, ep->id, s->packet.destination_port_be);
    int found = 0;

    if (!set)
        return 0;
#pragma unroll
    for (int i = 0; i < QUERY_WAYS; i++) {
        struct query *q = &set->way[i];

        if (q->hash == s->dns.hash && q->id == s->dns.id && q->port_be == s->packet.destination_port_be &&
            is_outstanding(q, s->job.ticks)) {
            found = 1;
            // Answered: the first to be overwritten, so that the set remembers those that still wait. Its answer may
            // come twice until the tick after this one is over, a second at least.
            if ((__s32)(s->job.ticks - q->asked) < (__s32)TICKS(QUERY_SECONDS) - 1)
                q->asked = s->job.ticks - (TICKS(QUERY_SECONDS) - 1);
        }
    }
    return found;
}

// The parts of a matched answer that make it one to learn from; a reason, or 0. 255: not of a kind that teaches.
#define NOTHING_TO_LEARN 255
static INLINE int check_answer(struct scratch *s)
{
    struct dns *d = &s->dns;

    if (s->event.message[3] & 15)
        return REASON_LEARN_RCODE;
    if (d->class != CLASS_IN || (d->type != TYPE_A && d->type != TYPE_AAAA))
        return NOTHING_TO_LEARN;
    if (d->bad_name)
        return REASON_LEARN_BAD_NAME;
    d->left = read_u16(s->event.message, 6);
    return d->left ? 0 : REASON_LEARN_NO_ADDRESS;
}

// From the pod's own interface it came through a Service: whoever stands behind that one wrote it.
static INLINE int is_misled(struct __sk_buff *skb, __u32 flags)
{
    if (!(flags & RESOLVER_NODE_LOCAL && skb->ingress_ifindex) && skb->ingress_ifindex != skb->ifindex)
        return 0;
    count_reason(INGRESS, REASON_LEARN_UNTRUSTED, skb->len);
    return 1;
}

// DNS between the endpoint and a trusted resolver shares one flow (own port 0): a query makes it, and an answer is
// admitted by the query that it matches. All else that such a resolver sends or is sent is an ordinary flow.
static INLINE void read_dns(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;
    __u32 flags, at = p->payload, length = p->end - p->payload;

    if (p->protocol == PROTOCOL_TCP && direction == INGRESS && p->fragment == FRAGMENT_WHOLE &&
        is_resolver_port(p->source_port_be))
        s->job.dns = DNS_STREAM;
    if (p->protocol != PROTOCOL_UDP)
        return;
    if (p->fragment == FRAGMENT_LATER) {
        if (p->shares_flow)
            s->key.own_port_be = 0;
        if (p->shares_flow == SHARES_ANSWER && direction == INGRESS)
            s->job.dns = DNS_FRAGMENT;
        return;
    }
    flags = find_resolver(s, &s->key.peer, s->key.peer_port_be);
    if (!flags || p->end < at)
        return;
    if (direction == EGRESS) {
        if (read_question(skb, s, at, length, DNS_QUERY_MASK) || s->dns.response)
            return;
        s->job.dns = DNS_QUERY;
    } else {
        if (is_misled(skb, flags))
            return;
        if (read_question(skb, s, at, length, DNS_MASK) || !s->dns.response || !was_asked(s, ep)) {
            count_reason(direction, REASON_LEARN_UNASKED, skb->len);
            return;
        }
        s->job.dns = DNS_ANSWER;
        s->dns.flags = flags;
        s->dns.started = 0;
    }
    s->key.own_port_be = 0;
    p->shares_flow = direction == INGRESS && !check_answer(s) ? SHARES_ANSWER : SHARES_DNS;
}

// What the recorder does not see of that over which a datagram's checksum is made. A mapped address adds up to what the
// IPv4 address does.
static INLINE __u32 sum_datagram(const struct packet *p, const struct l4_header *h)
{
    const struct address *a = &p->destination;
    __u32 checksum = h->sequence_be >> 16; // little endian: behind the length
    __u64 sum = (__u64)a->word[0] + a->word[1] + a->word[2] + a->word[3] + h->ports + checksum;

    if (!checksum && p->family == 4) // there is none; IPv6 has no such thing (RFC 8200 8.1)
        return 0;
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return bpf_ntohs((sum & 0xffff) + (sum >> 16));
}

// What came in more than one packet, or is too long to be read here, goes to the recorder in pieces. A packet's id and
// question were checked; fragments behind the first have neither, so the datagram's checksum is, as the pod does.
static INLINE void hand_over_datagram(struct __sk_buff *skb, struct scratch *s)
{
    struct packet *p = &s->packet;
    struct dns *d = &s->dns;

    d->piece = PIECE_DATAGRAM;
    d->piece_begin = p->fragment == FRAGMENT_LATER ? p->transport : p->payload;
    d->piece_place = p->fragment == FRAGMENT_LATER ? p->fragment_offset - p->fragment_headers * 8 : 0;
    d->piece_whole = p->fragment == FRAGMENT_WHOLE ? p->end - p->payload : 0;
    d->piece_checksum = 0;
    if (p->fragment == FRAGMENT_FIRST) { // its own length is not the datagram's
        d->piece_whole = (bpf_ntohl(s->l4.sequence_be) >> 16) - 8;
        d->piece_checksum = sum_datagram(p, &s->l4);
    }
    d->piece_id = p->fragment == FRAGMENT_WHOLE ? d->id | 0x80000000 : p->fragment_id;
    d->piece_at = d->piece_begin;
    tails.call(skb, TAIL_LEARN_PIECES);
}

// A tail call that did not come about: what it was to learn or hand over is nobody's, and the next event says so.
static INLINE void count_suppressed(const struct endpoint *ep)
{
    struct quota *q = find_quota(ep->id);

    if (q)
        q->answers_suppressed++;
}

// After the packet was let through: remember the query, or learn from the answer before it is released.
static INLINE void finish_dns(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    struct packet *p = &s->packet;

    if (s->job.dns == DNS_NONE)
        return;
    if (s->job.dns == DNS_QUERY) {
        record_query(s, ep);
        return;
    }
    if (s->job.dns == DNS_STREAM) {
        if (p->payload >= p->end && !(p->tcp_flags & TCP_SYN))
            return;
        s->dns.stream_at = p->payload;
        s->dns.calls = STREAM_CALLS;
        s->dns.reserve = 0;
        tails.call(skb, TAIL_LEARN_STREAM);
    } else if (s->job.dns == DNS_FRAGMENT) {
        hand_over_datagram(skb, s);
    } else if (p->fragment == FRAGMENT_WHOLE && !s->dns.truncated) {
        tails.call(skb, TAIL_LEARN_WALK);
    } else if (!check_answer(s)) {
        hand_over_datagram(skb, s);
    } else { // its header says so, whatever of it is missing here
        tails.call(skb, TAIL_LEARN_REFUSED);
    }
    count_suppressed(ep);
}
