"""Train the embedded model's tokenizer: byte-level BPE of 2048 tokens on the train split; about 3 seconds.

    python experiments/embedded/train_tokenizer.py [--output jaxq/embedded/tokenizer.json]

The result depends on the text of the running Python (the shipped file: see result.json), and on nothing else.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxq.embedded.text import documents
from jaxq.embedded.tokens import END_OF_TEXT

VOCABULARY = 2048
PACKAGED = Path(__file__).parents[2] / "jaxq" / "embedded" / "tokenizer.json"


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of the train split; token 0 is the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents("train")), trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PACKAGED)
    output = parser.parse_args().output
    tokenizer = train_tokenizer()
    tokenizer.save(str(output))
    print(f"{output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
