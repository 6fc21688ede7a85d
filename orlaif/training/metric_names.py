"""Every metric that a run logs, with its meaning: the names of TRL where it has one, ours where only ranks have it.

``<...>`` stands for what varies. The reference of the documentation is made from this table, and a test holds what runs
log against it.
"""

from __future__ import annotations

METRICS = {
    "train/loss": "what the step minimised, divided by what all tokens of all batches and processes count",
    "train/kl": "mean KL of policy and reference over answer tokens, by the recipe's estimator",
    "train/entropy": "mean exact entropy of the next token's distribution, nats",
    "train/clip_ratio/low_mean": "share of answer tokens whose ratio was clipped from below",
    "train/clip_ratio/high_mean": "share of answer tokens whose ratio was clipped from above",
    "train/clip_ratio/region_mean": "share of answer tokens whose ratio was clipped",
    "train/clip_ratio/runaway_mean": "share of answer tokens whose log-ratio was held at ``max_log_ratio``",
    "train/grad_norm": "norm of all gradients of a step before clipping",
    "train/lr": "learning rate of the first group of parameters, by which the step was made",
    "train/num_tokens": "tokens of prompts and answers so far, all processes together",
    "train/completions/mean_length": "mean tokens of an answer",
    "train/completions/clipped_ratio": "share of answers that `max_new_tokens` cut off",
    "train/pair_accuracy": "ranker: share of compared pairs that its scores order rightly",
    "train/sampling/sampling_logp_difference/mean": "mean difference of a token's log-prob, trainer against sampler",
    "train/sampling/sampling_logp_difference/max": "the largest such difference",
    "train/sampling/importance_sampling_ratio/<min, mean, max>": "importance weights after their bounds",
    "train/sampling/outside_ratio": "share of importance weights that lay outside the bounds of `rollout.correction`",
    "time/decode": "seconds of decoding and tokenising a batch, on threads ahead of the step",
    "time/data_wait": "seconds that a step waited for its batch",
    "time/data_wait_share": "share of the run so far that was spent waiting for batches",
    "time/rollout": "seconds of sampling the groups",
    "time/rollout_wait": "seconds that the step waited for groups which are sampled ahead",
    "time/oracle": "seconds from question to ranking",
    "time/oracle_wait": "seconds that the step waited for the ranking, the reference's pass being done",
    "time/reference": "seconds of the reference's forward pass",
    "time/old_logps": "seconds of the sampling policy's log-probs, where several updates use a rollout",
    "time/policy": "seconds of forward and backward passes",
    "oracle/tie_rate": "share of ranked pairs of answers that share a rank",
    "oracle/unranked_rate": "share of answers that the oracle left out",
    "oracle/zero_signal_rate": "share of groups without any advantage: they teach nothing",
    "oracle/order_consistency": "share of groups that are ranked alike when their answers are shown in another order",
    "oracle/policy_tau": "Kendall's tau between the oracle's order and the policy's own log-probs",
    "oracle/length_tau": "Kendall's tau of rank and length; positive: longer answers rank better (reward hacking)",
    "oracle/position_tau": "Kendall's tau of rank and the place shown; anything but 0 is a bias of the oracle",
    "oracle/mean_score": "mean score, of oracles that have scores",
    "oracle/failure_rate": "share of all groups so far that could not be ranked",
    "oracle/<requests, cache_hits, failures>": "of judges behind a server: what they cost since the last step",
    "data/bad_videos": "videos left out so far, all processes together (`on_bad_video: skip`)",
    "val/accuracy": "share of validation questions that the greedy answer gets right",
    "val/accuracy/<category>": "the same for one category",
    "val/win_rate": "share of validation prompts whose answer the oracle prefers to the first (`WinRate`)",
    "val/win_rate/<low, high>": "its 95 % interval, by a bootstrap over the prompts",
    "val/pair_accuracy": "ranker: share of held-out pairs that its scores order rightly",
    "test/<metric>": "what the suite of `orlaif test` measures",
}
