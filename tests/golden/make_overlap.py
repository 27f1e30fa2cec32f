"""Make pairs of texts, and what sacrebleu and rouge-score say of them.

Made with Python 3.11, sacrebleu 2.6.0 and rouge-score 0.1.2, both with their defaults; of Chinese, BLEU with `zh`.
"""

import json
import random
from pathlib import Path

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

HERE = Path(__file__).parent
WORDS = ["the", "cat", "Sat", "on", "a", "mat.", "3.5", "$4,000", "well-known", "it's", "(yes)", "&quot;no&quot;"]
WORDS += ["1-2", "end!", "x_y", "foo/bar", "\n", "-\n"]
CHINESE = [("今天天气很好,我们去公园。", "今天天气不错,我们去公园吧。"), ("我 喜欢 NLP 模型", "我喜欢NLP模型!")]


def make_pair(rng: random.Random) -> tuple[str, str]:
    """Return an answer that differs from its reference in a few words."""
    reference = [rng.choice(WORDS) for _ in range(rng.randint(1, 25))]
    answer = list(reference)
    for _ in range(rng.randint(0, 8)):
        place = rng.randrange(len(answer) + 1)
        answer[place : place + rng.randint(0, 1)] = [rng.choice(WORDS)] * rng.randint(0, 1)
    return " ".join(answer), " ".join(reference)


def main() -> None:
    """Write the numbers."""
    rng, rouge = random.Random(0), RougeScorer(["rouge1", "rouge2", "rougeL"])
    sets = [[make_pair(rng) for _ in range(rng.randint(1, 6))] for _ in range(60)]
    sets += [[("", "the cat")], [("nothing", "the cat sat on a mat")], CHINESE]
    told = []
    for pairs in sets:
        answers, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        tokenize = "zh" if pairs is CHINESE else "13a"
        scores = [] if pairs is CHINESE else [rouge.score(reference, answer) for answer, reference in pairs]
        told.append(
            {
                "pairs": pairs,
                "bleu": sacrebleu.corpus_bleu(answers, [references], tokenize=tokenize).score / 100,
                "chrf": sacrebleu.corpus_chrf(answers, [references]).score / 100,
                "rouge": [[score[name].fmeasure for name in rouge.rouge_types] for score in scores],
            }
        )
    (HERE / "overlap.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
