// stub until the learner is written
static INLINE void read_dns(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
}
static INLINE void finish_dns(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
}
int learn_walk(struct __sk_buff *skb)
{
    return -1;
}
int learn_write(struct __sk_buff *skb)
{
    return -1;
}
