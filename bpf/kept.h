// What an endpoint keeps for a while in a table that all share: ports of fragmented datagrams, answers that were told.
//
// An endpoint has the part of the table that it has of ``places`` (services/nodeagent/regions.py), scaled to the size of
// the table, and within it a key has one set of KEPT_WAYS entries. A part that an endpoint is given is empty, and what it
// kept in one that it has no more is forgotten. What floods an endpoint pushes out what it keeps
// itself and nobody else's. An entry is written under its ``version``, odd meanwhile: two CPUs never mix theirs.
// Deliberately absent: a shared LRU, whose valid entries are a flood's likeliest victims.

static INLINE union region read_region(const struct endpoint *ep)
{
    union region region = {.word = *(volatile __u64 *)&ep->region.word};

    return region;
}

static INLINE __u32 hash_kept(const struct kept_key *key)
{
    const __u64 *word = (const __u64 *)key;
    __u64 hash = 0;

#pragma unroll
    for (int i = 0; i < sizeof(*key) / sizeof(*word); i++) {
        hash = (hash ^ word[i]) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 32;
    }
    return hash;
}

#define NO_SET 0xffffffffu
// Which of a table's ``sets``, a constant, a key of this endpoint has; NO_SET: the endpoint has no part of it.
static INLINE __u32 choose_set(const struct endpoint *ep, __u32 sets, const struct kept_key *key)
{
    union region region = read_region(ep);
    __u32 own = (__u64)region.count * sets / FLOWS;

    if (!own)
        return NO_SET;
    return (__u64)region.first * sets / FLOWS + (hash_kept(key) & (own - 1));
}

// 1 if they differ, without a branch: each one doubles what the verifier walks.
static INLINE __u32 differ(const struct kept_key *a, const struct kept_key *b)
{
    const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;
    __u64 difference = 0;

#pragma unroll
    for (int i = 0; i < sizeof(*a) / sizeof(*x); i++)
        difference |= x[i] ^ y[i];
    return (difference | -difference) >> 63;
}

// The key's entry, or null. Of two, which two CPUs may have made at once, the last.
static INLINE struct kept *find_kept(struct kept_set *set, const struct kept_key *key)
{
    __u32 found = 0;

#pragma unroll
    for (int i = 0; i < KEPT_WAYS; i++) {
        __u32 differs = differ(&set->way[i].key, key);

        found = found * differs + (KEPT_WAYS | i) * (1 - differs);
    }
    return found ? &set->way[found & (KEPT_WAYS - 1)] : 0;
}

// The entry that ends first; of several that end in one tick the one that was written less often: they take turns.
// ``expires`` is the upper half of a stamp (little endian), so that one subtraction compares both.
static INLINE struct kept *find_oldest(struct kept_set *set)
{
    __u64 first = set->way[0].stamp.word;
    __u32 oldest = 0;

#pragma unroll
    for (int i = 1; i < KEPT_WAYS; i++) {
        __s64 later = set->way[i].stamp.word - first, is_earlier = later >> 63;

        first += later & is_earlier;
        oldest ^= (oldest ^ i) & is_earlier;
    }
    return &set->way[oldest & (KEPT_WAYS - 1)];
}

static INLINE int swap_stamp(struct kept *entry, union stamp before, union stamp after)
{
    return __sync_val_compare_and_swap(&entry->stamp.word, before.word, after.word) == before.word;
}

// Into the key's own entry, else into that of the set which ends first. Where another CPU writes that one now, nothing
// is kept: the loss is the endpoint's own.
static INLINE void keep(struct kept_set *set, const struct kept_key *key, __u32 expires, __u64 value)
{
    struct kept *entry = find_kept(set, key);
    union stamp before, meanwhile;

    if (!entry)
        entry = find_oldest(set);
    before.word = *(volatile __u64 *)&entry->stamp.word;
    meanwhile = before;
    meanwhile.version++;
    if (before.version & 1 || !swap_stamp(entry, before, meanwhile))
        return;
    entry->key = *key;
    entry->value = value;
    before.version += 2;
    before.expires = expires;
    swap_stamp(entry, meanwhile, before);
}

// Whether the entry holds this key until now, and then what is kept under it: not while either is being changed.
static INLINE int read_kept(struct kept *entry, const struct kept_key *key, __u32 now, __u64 *value)
{
    union stamp stamp;

    stamp.word = *(volatile __u64 *)&entry->stamp.word;
    *value = entry->value;
    if (stamp.version & 1 || (__s32)(stamp.expires - now) < 0 || differ(&entry->key, key))
        return 0;
    return swap_stamp(entry, stamp, stamp);
}
