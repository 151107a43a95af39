"""Growing a data set: a policy's sampled answers, judged by a critic, ranked, and looked through by people (`mmrlhf annotate`,
`mmrlhf review`, `mmrlhf best-of-n`)."""
