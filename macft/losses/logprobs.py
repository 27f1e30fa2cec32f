"""Log-probabilities of given tokens: what every loss is made of.

The rule: float32 from the logits on, whatever the model computes in. bf16 cross-entropy moves gradients by 0.6%.
"""

import mlx.core as mx


def token_logprobs(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the log-probability of each target.

    Args:
        logits: Scores before softmax [R, V].
        targets: Token ids [R].

    Returns:
        Natural-log probabilities [R], float32, nats.
    """
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
    return chosen - mx.logsumexp(logits, axis=-1)
