// Flows whose endpoint was given another region get a place in it.
//
// The agent runs ``move_flow`` over all places when it has written regions (services/nodeagent/moves.py) and every program
// that read those before has ended. A place outside its flow's region is in nobody's at that moment, so nobody takes it;
// packets go on meanwhile, and take places in the region that the flow is to have. One run looks at one place, or looks
// for room once. Not to be stopped by packets on its own CPU, it uses no working memory but the stack and what lasts from
// run to run: the packet's mark (which place) and its control block.

#define ROOM_TRIES 16 // of PLACES_PROBED each, where an endpoint has no free place: then the flow itself is the idlest

#define CB_WHOSE 0  // interface of the flows that are being moved
#define CB_LOOKED 1 // how many of its places for unanswered flows were looked at, and behind it those for answered ones
#define CB_TRIES 3  // for this flow, since none of them is free

enum move { MOVE_DONE = 0, MOVE_AGAIN = 1, MOVE_NO_ROOM = 2 };

union placed {
    struct {
        __u32 place, audited_by; // of struct flow
    };
    __u64 word;
};

static INLINE int is_within(union region region, __u32 index)
{
    return index - region.first < region.count;
}

// Its first answer may give a flow a place at the same time: the next run sees that then. ``place`` is written together
// with what is beside it, since nothing less is compared and swapped.
static INLINE enum move put_flow(struct flow *flow, const struct flow_key *key, __u32 from, struct choice to)
{
    struct place *p = places.lookup(&to.index);
    union placed *at = (union placed *)&flow->place, before, after;

    if (!p)
        return MOVE_NO_ROOM;
    if (!claim_place(p, to.index, to.holder))
        return MOVE_AGAIN;
    before.word = after.word = *(volatile __u64 *)&at->word;
    before.place = from;
    after.place = to.index;
    if (__sync_val_compare_and_swap(&at->word, before.word, after.word) != before.word) {
        disclaim_place(p);
        return MOVE_AGAIN;
    }
    name_place(p, key);
    return MOVE_DONE;
}

// How many of the endpoint's places were looked at. Both numbers are read and written, because a program may not choose
// where in its context it reads.
static INLINE __u32 count_looked(struct __sk_buff *skb, __u32 ifindex, int answered, __u32 more)
{
    __u32 same = skb->cb[CB_WHOSE] == ifindex;
    __u32 unanswered_looked = skb->cb[CB_LOOKED] * same, answered_looked = skb->cb[CB_LOOKED + 1] * same;

    if (answered)
        answered_looked += more;
    else
        unanswered_looked += more;
    skb->cb[CB_WHOSE] = ifindex;
    skb->cb[CB_LOOKED] = unanswered_looked;
    skb->cb[CB_LOOKED + 1] = answered_looked;
    return answered ? answered_looked : unanswered_looked;
}

// A free place while there may be one; then that of a flow which was idle longer, if a few looks find one.
static INLINE enum move find_room(struct __sk_buff *skb, struct endpoint *ep, struct flow *flow, const struct flow_key *key,
                                  __u32 from, __u32 idle, __u32 ticks)
{
    union region region = read_region(ep);
    int answered = flow->state & FLOW_ANSWERED ? 1 : 0;
    __u32 size = count_places(region, answered), looked;
    struct choice found = pick_place(ep, region, answered, ticks);

    looked = count_looked(skb, ep->ifindex, answered, found.idle == PLACE_FREE ? 1 : PLACES_PROBED);
    if (found.idle == PLACE_FREE || (looked > size && found.idle > idle))
        return put_flow(flow, key, from, found);
    if (!size)
        return MOVE_NO_ROOM;
    if (looked <= size)
        return MOVE_AGAIN;
    skb->cb[CB_TRIES]++;
    return skb->cb[CB_TRIES] < ROOM_TRIES ? MOVE_AGAIN : MOVE_NO_ROOM;
}

// The flow in a place gets one in its endpoint's region, or goes: its time is over, there is no room, or no endpoint.
static INLINE enum move move_from(struct __sk_buff *skb, struct place *p, __u32 index)
{
    __u32 ticks = bpf_ktime_get_coarse_ns() >> TICK_SHIFT, idle;
    struct flow_key key = p->key;
    enum move done = MOVE_NO_ROOM;
    struct endpoint *ep;
    struct flow *flow;

    if (!key.ifindex || key.interface_ports == PLACE_CLAIMED) // in the claimer's region
        return MOVE_DONE;
    ep = find_endpoint(key.ifindex);
    if (ep && is_within(read_region(ep), index))
        return MOVE_DONE;
    idle = find_idleness(p, index, ticks);
    flow = flows.lookup(&key);
    if (ep && flow && idle != PLACE_FREE)
        done = find_room(skb, ep, flow, &key, index, idle, ticks);
    if (done == MOVE_AGAIN)
        return done;
    if (done == MOVE_NO_ROOM && flow && flow->place == index)
        flows.delete(&key);
    leave_place(p, &key);
    return MOVE_DONE;
}

int move_flow(struct __sk_buff *skb)
{
    __u32 index = skb->mark;
    struct place *p = places.lookup(&index);

    if (p && move_from(skb, p, index) == MOVE_AGAIN)
        return TC_ACT_UNSPEC;
    skb->mark = index + 1;
    skb->cb[CB_TRIES] = 0;
    return TC_ACT_UNSPEC;
}
