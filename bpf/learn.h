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

// ----------------------------------------------------------------------------------------------------------------------
// Walking the answer.

// Whether a tail call may be spent on this message: any that is left, but for those that a stream needs behind it.
static INLINE int spend_call(struct scratch *s)
{
    if (s->job.dns != DNS_STREAM)
        return 1;
    if (s->dns.calls <= s->dns.reserve)
        return 0;
    s->dns.calls--;
    return 1;
}

// Done with a message: the next one of a stream, if this packet holds more. Its call is the first of the reserve.
static INLINE int leave_message(struct __sk_buff *skb, struct scratch *s)
{
    if (s->job.dns == DNS_STREAM && s->dns.stream_at < s->packet.end) {
        s->dns.calls--;
        tails.call(skb, TAIL_LEARN_STREAM);
    }
    return TC_ACT_UNSPEC;
}

static INLINE int count_learn(struct __sk_buff *skb, struct scratch *s, __u8 reason)
{
    count_reason(INGRESS, reason, skb->len);
    return leave_message(skb, s);
}

static INLINE void renew_budget(struct scratch *s, struct quota *q)
{
    if (q->answer_tick == s->job.ticks)
        return;
    q->answer_tick = s->job.ticks;
    q->answers = q->pieces = q->refusals = 0;
}

// Who told whom, in every event of the learner.
static INLINE void describe_event(struct scratch *s, struct endpoint *ep, __u32 suppressed)
{
    struct resolution_event *e = &s->event;

    e->header.boottime_nanos = bpf_ktime_get_boot_ns();
    e->header.endpoint = ep->id;
    e->header.suppressed = suppressed;
    e->resolver = s->packet.source;
    e->resolver_port_be = s->packet.source_port_be;
    e->own_port_be = s->packet.destination_port_be;
    e->protocol = s->packet.protocol;
    e->resolver_flags = s->dns.flags;
    e->checksum = 0;
}

// Tell user space: the message as far as it was read, and what was made of it. 0, or the ring is full.
static INLINE long send_answer(struct scratch *s, struct endpoint *ep, __u8 reason, __u32 suppressed)
{
    struct resolution_event *e = &s->event;
    __u64 size = s->dns.length;

    describe_event(s, ep, suppressed);
    e->message_bytes = size;
    e->reason = reason;
    e->learned = s->dns.learned > 255 ? 255 : s->dns.learned;
    e->answers = s->dns.found > 255 ? 255 : s->dns.found;
    e->domain = s->dns.domain;
    e->piece = PIECE_NONE;
    e->place = e->whole = e->id = 0;
    size = (size & DNS_MASK) + __builtin_offsetof(struct resolution_event, message);
    return resolution_events.ringbuf_output(e, size, 0);
}

static INLINE void emit_answer(struct scratch *s, struct endpoint *ep, __u8 reason)
{
    struct quota *q = find_quota(ep->id);

    if (!q)
        return;
    renew_budget(s, q);
    if (q->answers >= ANSWERS_PER_TICK) {
        q->answers_suppressed++;
        return;
    }
    q->answers++;
    if (send_answer(s, ep, reason, q->answers_suppressed)) {
        q->lost[RING_ANSWERS]++;
        q->answers_suppressed++;
    } else {
        q->answers_suppressed = 0;
    }
}

// No tail call is left for it: the recorder has the whole message, of which a part may be learned.
static INLINE int give_up(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    emit_answer(s, ep, REASON_LEARN_HANDED_OVER);
    return count_learn(skb, s, REASON_LEARN_HANDED_OVER);
}

enum walked { WALKED = 0, WALKED_MALFORMED = 1, WALKED_TOO_LONG = 2 };

// The owner name of a record: labels, then the end or a pointer back. Leaves the cursor behind it.
static INLINE int skip_owner(struct dns *d, const __u8 *message, __u32 record)
{
    volatile __u32 *cursor = &d->cursor;

    for (int i = 0; i < OWNER_LABELS; i++) {
        __u32 at = *cursor;
        __u8 byte = message[at & DNS_MASK];

        if (at >= d->length)
            return WALKED_MALFORMED;
        if (byte == 0) {
            *cursor = at + 1;
            return WALKED;
        }
        if (byte >= 192) {
            __u32 to = read_u16(message, at) & 0x3fff;

            *cursor = at + 2;
            return to >= DNS_HEADER && to < record ? WALKED : WALKED_MALFORMED;
        }
        if (byte > 63)
            return WALKED_MALFORMED;
        *cursor = at + 1 + byte;
    }
    return WALKED_TOO_LONG;
}

static INLINE int walk_record(struct dns *d, const __u8 *message, __u16 *found_at)
{
    volatile __u32 *cursor = &d->cursor;
    __u32 at, type, class, size;
    int walked = skip_owner(d, message, *cursor);

    if (walked)
        return walked;
    at = *cursor;
    if (at + 10 > d->length)
        return WALKED_MALFORMED;
    type = read_u16(message, at);
    class = read_u16(message, at + 2);
    size = read_u16(message, at + 8);
    at += 10;
    if (at + size > d->length)
        return WALKED_MALFORMED;
    if (type == d->type && class == CLASS_IN) {
        __u32 found = d->found;

        if (size != (type == TYPE_A ? 4 : 16))
            return WALKED_MALFORMED;
        if (found >= ANSWERS - 1)
            return WALKED_TOO_LONG;
        found_at[found & (ANSWERS - 1)] = at;
        d->found = found + 1;
    } else if (type == TYPE_CNAME && class == CLASS_IN && d->first) {
        d->alias = at;
        d->alias_length = size;
    }
    d->first = 0;
    *cursor = at + size;
    return WALKED;
}

static INLINE int start_walk(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct config *c = find_config();
    int checked = check_answer(s);

    if (checked)
        return checked;
    if (!c)
        return NOTHING_TO_LEARN;
    d->started = 1;
    d->first = 1;
    d->alias = d->alias_length = 0;
    d->found = d->applied = d->learned = d->news = d->refused = d->full = d->placing = 0;
    d->domain = 0;
    d->now = read_boot_seconds(s);
    d->scope = d->flags & RESOLVER_OUTSIDE ? ep->id : SCOPE_LEARNED;
    d->min_ttl = c->ttl_min_seconds;
    d->max_ttl = c->ttl_max_seconds;
    d->grace = c->grace_seconds;
    d->names_limit = c->names_per_endpoint;
    return 0;
}

int learn_walk(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    int checked, walked = WALKED;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    if (!s->dns.started) {
        checked = start_walk(s, ep);
        if (checked == REASON_LEARN_RCODE)
            count_reason(INGRESS, checked, skb->len);
        if ((checked == REASON_LEARN_RCODE || checked == REASON_LEARN_NO_ADDRESS) && spend_call(s))
            tails.call(skb, TAIL_LEARN_REFUSED);
        if (checked == NOTHING_TO_LEARN)
            return leave_message(skb, s);
        if (checked)
            return count_learn(skb, s, checked);
    }
    for (int i = 0; i < WALK_BITE; i++) {
        __u32 left = *(volatile __u32 *)&s->dns.left;

        if (!left)
            break;
        walked = walk_record(&s->dns, s->event.message, s->at);
        if (walked)
            break;
        s->dns.left = left - 1;
    }
    if (walked == WALKED_MALFORMED)
        return count_learn(skb, s, REASON_LEARN_MALFORMED);
    if (walked == WALKED_TOO_LONG || !spend_call(s))
        return give_up(skb, s, ep);
    if (s->dns.left)
        tails.call(skb, TAIL_LEARN_WALK);
    else if (s->dns.alias)
        tails.call(skb, TAIL_LEARN_ALIAS);
    else if (s->dns.found)
        tails.call(skb, TAIL_LEARN_WRITE);
    else
        tails.call(skb, TAIL_LEARN_REFUSED);
    return give_up(skb, s, ep);
}

// ----------------------------------------------------------------------------------------------------------------------
// CoreDNS autopath: the asked name ends in a search suffix, and the first record is a CNAME to the name without it.

// Whether the alias is the beginning of the asked name; sets ``short_length``.
static INLINE int is_alias_of_beginning(struct scratch *s)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    const volatile __u32 *length = &d->alias_length;

    if (*length < 3 || *length > NAME_WIRE_BYTES || *length - 2 >= d->name_length)
        return 0;
    if (message[(d->alias + *length - 1) & DNS_MASK])
        return 0;
    for (__u32 i = 0; i < NAME_WIRE_BYTES; i++) {
        if (i + 1 >= *length)
            break;
        if (fold(message[(d->alias + i) & DNS_MASK]) != fold(message[DNS_HEADER + i]))
            return 0;
    }
    d->short_length = *length - 2;
    return 1;
}

// Whether what follows the beginning is the suffix, or one label and the suffix (a namespace). Lengths are read again
// from memory at every step: each way out of a loop would else be remembered by how far it got.
static INLINE int is_suffix(struct scratch *s, const struct suffix *suffix)
{
    volatile __u32 *at = &s->dns.cursor, *rest = &s->dns.left;
    const volatile __u32 *length = &suffix->length;

    if (!*length || *length > SUFFIX_BYTES || s->dns.name_length < s->dns.short_length + *length)
        return 0;
    *at = TEXT_END - s->dns.name_length;
    for (__u32 i = 0; i < SUFFIX_BYTES; i++) {
        __u32 index = i;

        if (i >= *length)
            break;
        FORGET(index);
        if (s->text[*at & 511] != suffix->name[index & (SUFFIX_BYTES - 1)])
            return 0;
        *at = *at + 1;
    }
    *rest = s->dns.name_length - s->dns.short_length - *length; // reversed: suffix, then this, then the beginning
    if (*rest == 0)
        return 1;
    if (*rest < 2 || *rest > 64)
        return 0;
    for (__u32 i = 0; i < 63; i++) {
        if (*rest == 1)
            break;
        if (s->text[*at & 511] == '.')
            return 0;
        *at = *at + 1;
        *rest = *rest - 1;
    }
    return s->text[*at & 511] == '.';
}

// Take the name without its suffix: a shorter end of ``text``, and that name's hash.
static INLINE void shorten_name(struct scratch *s)
{
    s->dns.name_length = s->dns.short_length;
    read_words(s, s->dns.short_length + 1);
    write_dots(s);
}

int learn_alias(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct config *c = find_config();
    int shortened = 0;

    if (!s || !ep || !c)
        return TC_ACT_UNSPEC;
    if (is_alias_of_beginning(s)) {
        for (int i = 0; i < SEARCH_SUFFIXES; i++) {
            if (!shortened && is_suffix(s, &c->suffix[i]))
                shortened = 1;
        }
    }
    if (shortened)
        shorten_name(s);
    s->dns.left = 0;
    if (spend_call(s)) {
        if (s->dns.found)
            tails.call(skb, TAIL_LEARN_WRITE);
        else
            tails.call(skb, TAIL_LEARN_REFUSED);
    }
    return give_up(skb, s, ep);
}

// ----------------------------------------------------------------------------------------------------------------------
// Writing what was found.

static INLINE __u32 find_domain_row(struct scratch *s)
{
    __u32 length = s->dns.name_length & 255;
    struct domain_key *key = (struct domain_key *)(s->text + (TEXT_END - 4 - length));
    __u32 *row;

    key->prefix_bits = (length + 2) * 8; // its first dot, which is last, and the NUL
    row = domains.lookup(key);
    return row ? *row : 0;
}

static INLINE int is_refused_exactly(struct scratch *s, const struct address *a)
{
    struct known_address *known;
    __u32 *found;

    s->cidr_key.prefix_bits = 128;
    __builtin_memcpy(s->cidr_key.byte, a, 16);
    found = guard.lookup(&s->cidr_key);
    if (found && *found != GUARD_PERMIT)
        return 1;
    known = ipcache.lookup((struct address *)a);
    return known && known->identity;
}

// The IPv4 address inside an IPv6 one, where a translator would send its packets. 1: there is one.
static INLINE int find_embedded(const struct address *a, struct address *inner)
{
    if (a->word[0] == bpf_htonl(0x0064ff9b) && a->word[1] == 0 && a->word[2] == 0) { // NAT64, RFC 6052
        set_mapped(inner, a->word[3]);
        return 1;
    }
    if ((a->word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0x20020000)) { // 6to4, RFC 3056
        set_mapped(inner, a->word[0] >> 16 | a->word[1] << 16); // little endian: bytes 2..5
        return 1;
    }
    if (a->half[0] == 0 && a->word[2] == 0) { // v4-compatible, RFC 4291
        set_mapped(inner, a->word[3]);
        return 1;
    }
    return 0;
}

// The rebinding guard: no name may have the address of a pod, a node, a Service or of a range that is nobody's host.
static INLINE int is_refused(struct scratch *s, const struct address *a)
{
    struct address *inner = &s->resolver_key.address;

    if (s->dns.type == TYPE_AAAA && is_mapped(a)) // its 128-bit form is the IPv4 address's own
        return 1;
    if (is_refused_exactly(s, a))
        return 1;
    return s->dns.type == TYPE_AAAA && find_embedded(a, inner) && is_refused_exactly(s, inner);
}

static INLINE __u32 find_lifetime(const struct dns *d, __u32 ttl)
{
    if (ttl & 0x80000000) // RFC 2181: as if zero
        ttl = 0;
    if (ttl < d->min_ttl)
        ttl = d->min_ttl;
    return ttl > d->max_ttl ? d->max_ttl : ttl;
}

// Whether an expiry is still worth not renewing: more than half of the answer's own time is left.
static INLINE int is_fresh(__u32 expiry, __u32 now, __u32 lifetime)
{
    return (__s32)(expiry - now) > (__s32)(lifetime / 2);
}

// Signed: names carried over from a layout whose quotas were not are given back without having been charged.
static INLINE int is_over_quota(struct dns *d, struct endpoint *ep)
{
    struct quota *q = find_quota(ep->id);
    __u32 index = ep->id & (ENDPOINT_SLOTS - 1), *credited = credits.lookup(&index);

    return !q || !credited || (__s32)(q->learned - *credited) >= (__s32)d->names_limit;
}

static INLINE void charge(struct endpoint *ep)
{
    struct quota *q = find_quota(ep->id);

    if (q)
        __sync_fetch_and_add(&q->learned, 1);
}

enum written { NOT_WRITTEN = 0, WRITTEN = 1, IS_KNOWN = 2, AGAIN = 3 }; // AGAIN: the slot became another CPU's

// Into a page that exists: the row's own slot, else a free one, else one whose time is over.
static INLINE int write_slot(struct scratch *s, struct endpoint *ep, struct names *page, __u64 slot, __u32 lifetime)
{
    volatile __u32 *own = &s->slot_own, *free = &s->slot_free;
    __u32 index;
    __u64 old;

    *own = *free = NAME_SLOTS;
    for (int i = 0; i < NAME_SLOTS; i++) {
        __u64 there = page->slot[i];

        if (there >> 32 == slot >> 32 && there)
            *own = i;
        else if (!there)
            *free = i;
        else if (*free == NAME_SLOTS && (__u32)there <= s->dns.now)
            *free = i;
    }
    index = *own;
    if (index < NAME_SLOTS) {
        old = page->slot[index & (NAME_SLOTS - 1)];
        if (old >> 32 != slot >> 32)
            return AGAIN; // taken since its time was over
        if (is_fresh(old, s->dns.now, lifetime + s->dns.grace) || (__u32)old >= (__u32)slot)
            return IS_KNOWN;
        return __sync_val_compare_and_swap(&page->slot[index & (NAME_SLOTS - 1)], old, slot) == old ? WRITTEN : AGAIN;
    }
    index = *free;
    if (index >= NAME_SLOTS || is_over_quota(&s->dns, ep))
        return NOT_WRITTEN;
    old = page->slot[index & (NAME_SLOTS - 1)];
    if (old && (__u32)old > s->dns.now)
        return AGAIN;
    if (__sync_val_compare_and_swap(&page->slot[index & (NAME_SLOTS - 1)], old, slot) != old)
        return AGAIN;
    page->owner[index & (NAME_SLOTS - 1)] = ep->id;
    charge(ep);
    return WRITTEN;
}

static INLINE int make_page(struct scratch *s, struct endpoint *ep, __u64 slot)
{
    if (is_over_quota(&s->dns, ep))
        return NOT_WRITTEN;
    __builtin_memset(&s->fresh, 0, sizeof(s->fresh));
    s->fresh.slot[0] = slot;
    s->fresh.owner[0] = ep->id;
    if (resolutions.insert(&s->resolution_key, &s->fresh))
        return NOT_WRITTEN; // full, or another CPU was first
    charge(ep);
    return WRITTEN;
}

// The set of ``kept_key`` in ``seen``, which is filled for an address, or for the whole answer of a type (address null).
static INLINE struct kept_set *find_seen(struct scratch *s, struct endpoint *ep, const struct address *a, __u64 kind)
{
    struct kept_key *key = &s->kept_key;
    __u32 index;

    if (a)
        key->one = *a;
    else
        key->one.half[0] = key->one.half[1] = 0;
    key->two.half[0] = s->dns.name_hash;
    key->two.half[1] = key->four = 0;
    key->three = kind << 32 | ep->id;
    index = choose_set(ep, SETS_OF(SEEN), key);
    return seen.lookup(&index);
}

static INLINE struct kept_set *find_seen_answer(struct scratch *s, struct endpoint *ep, int is_a)
{
    return find_seen(s, ep, 0, is_a ? SEEN_ANSWER_A : SEEN_ANSWER_AAAA);
}

// Whether what was told until ``expires`` need not be told again: the cluster has it for the grace longer, and more than
// half of the answer's time and grace is left. The recorder publishes by the same half.
static INLINE int is_told(const struct dns *d, __u32 expires, __u32 lifetime)
{
    return is_fresh(expires + d->grace, d->now, lifetime + d->grace);
}

static INLINE void note_told(struct dns *d, __u32 expires)
{
    if ((__s32)(expires - d->told) < 0)
        d->told = expires;
}

// Whether this (endpoint, name, address) is news, and note it.
static INLINE int is_news(struct scratch *s, struct endpoint *ep, const struct address *a, __u32 lifetime)
{
    struct kept_set *set = find_seen(s, ep, a, SEEN_ADDRESS);
    __u32 expires = s->dns.now + lifetime;
    struct kept *known;
    int is_old;

    if (!set)
        return 1;
    known = find_kept(set, &s->kept_key);
    is_old = known && known->value == s->dns.domain && is_told(&s->dns, known->stamp.expires, lifetime);
    if (is_old)
        expires = known->stamp.expires;
    else
        keep(set, &s->kept_key, expires, s->dns.domain);
    note_told(&s->dns, expires);
    return !is_old;
}

// Whether nothing would be written for this address: the name has it, for longer than half of the answer's time. Asked
// before the guard, which nearly every answer passed when it was first told; what it refuses since is not renewed.
static INLINE int is_known(struct scratch *s)
{
    struct dns *d = &s->dns;
    struct names *page;
    __u32 expiry;

    if (d->type == TYPE_AAAA && is_mapped(&s->found)) // its slot would be an IPv4 address's own
        return 0;
    page = find_names(s, &s->found, d->scope, 0);
    if (!page)
        return 0;
    expiry = page->slot[0];
    if (page->slot[0] >> 32 == d->domain) // most addresses have one name
        return is_fresh(expiry, d->now, d->lifetime + d->grace);
    expiry = 0;
#pragma unroll
    for (int i = 1; i < NAME_SLOTS; i++) {
        __u64 there = page->slot[i], differs = (there >> 32) ^ d->domain;

        expiry |= (__u32)there & (__u32)((differs - 1) >> 32); // without a branch: of the row's own slot alone
    }
    return expiry && is_fresh(expiry, d->now, d->lifetime + d->grace);
}

// Take up the next address: is it news, and may the name have it. ``placing``: it wants a slot.
static INLINE void take_address(struct scratch *s, struct endpoint *ep, __u32 at)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    struct address *a = &s->found;

    d->lifetime = find_lifetime(d, read_u32(message, at - 6));
    if (d->type == TYPE_A)
        set_mapped(a, bpf_htonl(read_u32(message, at)));
    else
        __builtin_memcpy(a, message + (at & DNS_MASK), 16);
    if (!d->quiet && is_news(s, ep, a, d->lifetime))
        d->news++;
    if (!d->domain)
        return;
    if (is_known(s)) {
        d->learned++;
        return;
    }
    if (is_refused(s, a)) {
        d->refused++;
        return;
    }
    d->placing = 1;
    d->page = 0;
}

// Where the pages that all share are full, the endpoint's own follow: a neighbour's names take no place from its own.
static INLINE struct names *find_page(struct scratch *s, struct endpoint *ep)
{
    __u32 scope = s->dns.scope;

    if (s->dns.page >= NAME_PAGES)
        scope = ep->id;
    return find_names(s, &s->found, scope, s->dns.page & (NAME_PAGES - 1));
}

static INLINE int write_page(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u64 slot = (__u64)d->domain << 32 | (d->now + d->lifetime + d->grace);
    struct names *page = find_page(s, ep);
    int written;

    if (!page) {
        written = make_page(s, ep, slot);
        if (written)
            return written;
        page = find_page(s, ep);
        if (!page)
            return NOT_WRITTEN;
    }
    written = write_slot(s, ep, page, slot, d->lifetime);
    if (!written)
        page->more = 1;
    return written;
}

// One page for the address that was taken up. No page after the last: it stays unlearned.
static INLINE void place_address(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u32 pages = d->scope == SCOPE_LEARNED ? 2 * NAME_PAGES : NAME_PAGES;
    int written = write_page(s, ep);

    if (written == AGAIN) // the same page: there is another slot, or none
        return;
    if (written) {
        d->learned++;
        d->placing = 0;
        return;
    }
    d->page++;
    if (d->page < pages)
        return;
    d->full++;
    d->placing = 0;
}

// Of two TTLs, one of them as on the wire (see find_lifetime); without a branch, which each doubles what is verified.
static INLINE __s32 find_shorter(__s32 one, __s32 other)
{
    other &= ~(other >> 31);
    return one + ((other - one) & (other - one) >> 31);
}

// What tells this answer from others: its addresses and, apart, the shortest of their times.
static INLINE void sum_addresses(struct scratch *s)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    __s32 shortest = 0x7fffffff;

    d->sum.half[0] = d->sum.half[1] = 0;
    for (__u32 i = 0; i < WALK_BITE; i++) {
        __u64 high, low;
        __u32 at;

        if (i >= d->found)
            break;
        at = s->at[i];
        high = read_u32(message, at);
        low = 0;
        if (d->type == TYPE_AAAA) {
            high = high << 32 | read_u32(message, at + 4);
            low = (__u64)read_u32(message, at + 8) << 32 | read_u32(message, at + 12);
        }
        d->sum.half[0] += mix(mix(HASH_BASIS, high), low); // whatever the order
        d->sum.half[1] += mix(mix(HASH_PRIME, low), high);
        shortest = find_shorter(shortest, read_u32(message, at - 6));
    }
    d->shortest = find_lifetime(d, shortest);
    d->told = d->now + d->max_ttl;
}

static INLINE __u64 digest_answer(const struct dns *d)
{
    return (mix(mix(d->sum.half[0], d->sum.half[1]), d->domain) | 2) & ~SEEN_GIVEN; // never 0
}

// Whether this very answer was told, and not long ago. Where it was refused since, that it is given again is news.
static INLINE int is_quiet(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct kept_set *set = find_seen_answer(s, ep, d->type == TYPE_A);
    struct kept *known = set ? find_kept(set, &s->kept_key) : 0;

    if (!known)
        return 0;
    if (!known->value)
        d->news = 1;
    return d->found <= WALK_BITE && (known->value & ~SEEN_GIVEN) == digest_answer(d) &&
           is_told(d, known->stamp.expires, d->shortest);
}

static INLINE void note_answer(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct kept_set *set = find_seen_answer(s, ep, d->type == TYPE_A);

    if (set)
        keep(set, &s->kept_key, d->told, digest_answer(d) | (d->refused < d->found ? SEEN_GIVEN : 0));
}

static INLINE void finish_learning(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u8 reason = 0;

    if (d->refused)
        reason = REASON_LEARN_REFUSED_ADDRESS;
    else if (d->full)
        reason = is_over_quota(d, ep) ? REASON_LEARN_QUOTA : REASON_MAP_FULL;
    if (reason)
        count_reason(INGRESS, reason, skb->len);
    if (d->quiet)
        return;
    note_answer(s, ep);
    if (d->news)
        emit_answer(s, ep, reason);
}

int learn_write(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    if (!s->dns.found)
        return leave_message(skb, s);
    if (s->dns.started == 1) {
        s->dns.started = 2;
        s->dns.domain = find_domain_row(s);
        sum_addresses(s);
        s->dns.quiet = is_quiet(s, ep);
    }
    for (int i = 0; i < WRITE_BITE; i++) {
        __u32 index = *(volatile __u32 *)&s->dns.applied;

        if (!*(volatile __u32 *)&s->dns.placing) {
            if (index >= s->dns.found)
                break;
            take_address(s, ep, s->at[index & (ANSWERS - 1)]);
            s->dns.applied = index + 1;
        }
        if (*(volatile __u32 *)&s->dns.placing)
            place_address(s, ep);
    }
    if (s->dns.placing || s->dns.applied < s->dns.found) {
        if (spend_call(s))
            tails.call(skb, TAIL_LEARN_WRITE);
        return give_up(skb, s, ep);
    }
    finish_learning(skb, s, ep);
    return leave_message(skb, s);
}

// ----------------------------------------------------------------------------------------------------------------------
// The gate is open and DNS said no: a name that some pattern covers, and an answer without an address. User space decides
// what is worth telling; here is left out what every lookup brings: that the other type's question found addresses.

#define REFUSALS_PER_TICK 32 // told of one endpoint

// Whether neither this question nor the one for the other family gives addresses now. What is refused vouches no more.
static INLINE int is_refusal(struct scratch *s, struct endpoint *ep)
{
    __u32 now = s->dns.now, grace = s->dns.grace;
    struct kept_set *set = find_seen_answer(s, ep, s->dns.type == TYPE_A);
    struct kept *known = set ? find_kept(set, &s->kept_key) : 0;

    if (known && known->value)
        keep(set, &s->kept_key, now, 0);
    set = find_seen_answer(s, ep, s->dns.type != TYPE_A);
    known = set ? find_kept(set, &s->kept_key) : 0;
    return !known || !(known->value & SEEN_GIVEN) || (__s32)(known->stamp.expires + grace - now) <= 0;
}

static INLINE void emit_refusal(struct scratch *s, struct endpoint *ep, __u8 reason)
{
    struct quota *q = find_quota(ep->id);

    if (!q)
        return;
    renew_budget(s, q);
    s->dns.learned = s->dns.found = 0;
    if (q->refusals >= REFUSALS_PER_TICK) {
        q->refusals_suppressed++;
        return;
    }
    if (send_answer(s, ep, reason, q->refusals_suppressed)) {
        q->lost[RING_ANSWERS]++;
        q->refusals_suppressed++;
        return;
    }
    q->refusals++;
    q->refusals_suppressed = 0;
}

int learn_refused(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct config *c = find_config();
    struct dns *d;
    __u8 reason;

    if (!s || !ep || !c)
        return TC_ACT_UNSPEC;
    d = &s->dns;
    reason = s->event.message[3] & 15 ? REASON_LEARN_RCODE : REASON_LEARN_NO_ADDRESS;
    if (d->class != CLASS_IN || (d->type != TYPE_A && d->type != TYPE_AAAA) || d->bad_name ||
        s->event.message[2] & HEADER_TRUNCATED) // asked again over TCP
        return leave_message(skb, s);
    d->now = read_boot_seconds(s);
    d->grace = c->grace_seconds; // longer than it takes until such an answer is no longer quiet
    d->domain = find_domain_row(s);
    if (!d->domain || !is_refusal(s, ep))
        return leave_message(skb, s);
    if (reason == REASON_LEARN_NO_ADDRESS)
        count_reason(INGRESS, reason, skb->len);
    emit_refusal(s, ep, reason);
    return leave_message(skb, s);
}

// ----------------------------------------------------------------------------------------------------------------------
// DNS over TCP. The place of the next message is known from the resolver's SYN on; a segment that merely looks like a
// message is none. A message that is whole in its segment is learned; of all else the recorder gets the bytes. Where a
// message begins in the midst of what is handed over, or one is missing, the rest of the connection is the recorder's.

#define PIECES_PER_TICK 512 // of one endpoint, 4,095 bytes each

// Tail calls that it takes to hand over so much.
static INLINE __u32 count_pieces(__u32 bytes)
{
    return (bytes + DNS_MASK - 1) / DNS_MASK;
}

// Tail calls that the message takes from here on, if no address wants more than one page: bites of a walk, of which no
// message holds more, an alias, and bites of writing. Where it takes more it is given up on, whole.
static INLINE __u32 count_calls(const struct scratch *s)
{
    __u32 records = read_u16(s->event.message, 6);

    if (records > RECORDS)
        records = RECORDS;
    return records / WALK_BITE + records / WRITE_BITE + 3;
}

static INLINE int hand_over_stream(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, __u8 piece,
                                   __u32 begins)
{
    struct dns *d = &s->dns;

    d->piece = piece;
    d->piece_begin = d->piece_at = d->stream_at;
    d->piece_place = s->packet.tcp_sequence + d->stream_at - s->packet.payload;
    d->piece_whole = begins;
    d->piece_id = d->piece_checksum = 0;
    d->stream_at = s->packet.end;
    tails.call(skb, TAIL_LEARN_PIECES);
    count_suppressed(ep);
    return TC_ACT_UNSPEC;
}

static INLINE void lose_stream(struct flow *flow)
{
    flow->dns = (flow->dns & ~FLOW_DNS_SYNC) | FLOW_DNS_HANDED_OVER;
}

// The resolver's SYN, the first it sends on a connection that the pod opened: the first message follows it.
static INLINE void begin_stream(struct flow *flow, const struct packet *p)
{
    if (!(p->tcp_flags & TCP_ACK) || flow->replies.packets != 1 || flow->dns & FLOW_DNS_HANDED_OVER)
        return;
    flow->dns_sequence = p->tcp_sequence + 1;
    flow->dns |= FLOW_DNS_SYNC | FLOW_DNS_PORT;
}

// A message begins here. Its place is left behind, whatever comes of it. What may take more tail calls than there are
// is handed over from its beginning, while they suffice to hand over all that is behind it too.
static INLINE int read_stream(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, struct flow *flow,
                              __u32 left)
{
    struct dns *d = &s->dns;
    __u32 begins = flow->dns_sequence, at = d->stream_at, length, behind, calls;
    __u16 length_be = 0;
    int reason;

    if (bpf_skb_load_bytes(skb, at, &length_be, sizeof(length_be)))
        return TC_ACT_UNSPEC;
    length = bpf_ntohs(length_be);
    flow->dns_sequence = begins + 2 + length;
    if (length > DNS_MASK || left < 2 + length) {
        if (left > 2 + length)
            lose_stream(flow);
        return hand_over_stream(skb, s, ep, PIECE_BEGIN, begins);
    }
    behind = left - (2 + length);
    d->reserve = behind ? 1 + count_pieces(behind) : 0;
    d->started = 0;
    reason = read_question(skb, s, at + 2, length, DNS_MASK);
    if (!d->response)
        reason = REASON_LEARN_MALFORMED;
    calls = d->reserve;
    if (!reason)
        calls += count_calls(s);
    if (d->calls < calls) {
        if (behind)
            lose_stream(flow);
        return hand_over_stream(skb, s, ep, PIECE_BEGIN, begins);
    }
    d->stream_at = at + 2 + length;
    if (reason)
        return count_learn(skb, s, reason);
    d->calls--;
    tails.call(skb, TAIL_LEARN_WALK);
    count_suppressed(ep);
    return TC_ACT_UNSPEC;
}

int learn_stream(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct flow *flow;
    __u32 left;
    __s32 ahead;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    flow = flows.lookup(&s->key);
    if (!flow || flow->direction != EGRESS)
        return TC_ACT_UNSPEC;
    s->dns.flags = find_resolver(s, &s->key.peer, s->key.peer_port_be);
    if (!s->dns.flags || is_misled(skb, s->dns.flags))
        return TC_ACT_UNSPEC;
    if (s->packet.tcp_flags & TCP_SYN) {
        begin_stream(flow, &s->packet);
        return TC_ACT_UNSPEC;
    }
    left = s->packet.end - s->dns.stream_at;
    if (flow->dns & FLOW_DNS_HANDED_OVER)
        return hand_over_stream(skb, s, ep, PIECE_STREAM, 0);
    if (!(flow->dns & FLOW_DNS_SYNC))
        return TC_ACT_UNSPEC;
    ahead = s->packet.tcp_sequence + (s->dns.stream_at - s->packet.payload) - flow->dns_sequence;
    if (ahead == 0 && left >= 2)
        return read_stream(skb, s, ep, flow, left);
    if (ahead < 0 && (__u32)-ahead >= left) // the rest of what was handed over, or sent again
        return hand_over_stream(skb, s, ep, PIECE_STREAM, 0);
    lose_stream(flow);
    return hand_over_stream(skb, s, ep, PIECE_BEGIN, flow->dns_sequence);
}

// One piece of this packet into the ring, and the next by a tail call to self.
int learn_pieces(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct resolution_event *e;
    struct quota *q;
    struct dns *d;
    __u64 size;
    __u32 left;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    q = find_quota(ep->id);
    d = &s->dns;
    e = &s->event;
    d->flags = find_resolver(s, &s->key.peer, s->key.peer_port_be);
    if (!q || d->piece_at >= s->packet.end || !d->flags || is_misled(skb, d->flags))
        return TC_ACT_UNSPEC;
    if (d->piece_at == d->piece_begin)
        count_reason(INGRESS, REASON_LEARN_HANDED_OVER, skb->len);
    renew_budget(s, q);
    left = s->packet.end - d->piece_at;
    size = (left > DNS_MASK ? DNS_MASK : left) - 1;
    FORGET(size);
    size = (size & DNS_MASK) + 1; // kernel 6.1 does not take "is not zero" for a bound
    if (q->pieces >= PIECES_PER_TICK || bpf_skb_load_bytes(skb, d->piece_at, e->message, size)) {
        q->answers_suppressed++;
        return TC_ACT_UNSPEC;
    }
    q->pieces++;
    describe_event(s, ep, q->answers_suppressed);
    e->message_bytes = size;
    e->reason = REASON_LEARN_HANDED_OVER;
    e->learned = e->answers = 0;
    e->domain = 0;
    e->piece = d->piece;
    e->place = d->piece_place + (d->piece_at - d->piece_begin);
    e->whole = d->piece_whole;
    e->id = d->piece_id;
    e->checksum = d->piece_checksum;
    d->piece_at += size;
    if (d->piece == PIECE_BEGIN)
        d->piece = PIECE_STREAM;
    size = (size & DNS_MASK) + __builtin_offsetof(struct resolution_event, message);
    if (handovers.ringbuf_output(e, size, 0)) {
        q->lost[RING_HANDOVERS]++;
        q->answers_suppressed++;
    } else {
        q->answers_suppressed = 0;
    }
    if (d->piece_at >= s->packet.end)
        return TC_ACT_UNSPEC;
    tails.call(skb, TAIL_LEARN_PIECES);
    q->answers_suppressed++;
    return TC_ACT_UNSPEC;
}
