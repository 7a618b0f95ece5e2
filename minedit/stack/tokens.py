"""Prompt -> CLIP token ids, words as spans of tokens, and which word of one prompt answers to which of another.

Words are what CLIP's own pre-tokenizer splits, lower-cased; a word is addressed by its position, never by its text.
The alignment is difflib's on the two word lists: unlike the aligner of Prompt-to-Prompt (Hertz et al.,
arXiv:2208.01626), for which two gaps always beat a mismatch, it knows *replaced* words, between which AdapEdit's Eq. 8
(arXiv:2312.08019) interpolates. T is the length of a padded id row, 77 for CLIP.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from minedit.config import MineditError

QUOTE = 60  # characters of a prompt shown on each side of a cut
FOREIGN = re.compile(  # <lora:name:1>, (word:1.3), ((word)), [word]; "(word)" alone may be prose
    r"<(?:lora|lyco|hypernet):[^<>]*>|\([^()]*:\s*(?:\d+(?:\.\d*)?|\.\d+)\s*\)|\(\([^()]*\)\)|\[[^][]*\]", re.IGNORECASE
)


@dataclass(frozen=True)
class Word:
    text: str  # lower case
    tokens: range  # positions in the padded row; the begin token is at 0


@dataclass(frozen=True)
class Prompt:
    text: str
    ids: tuple[int, ...]  # [T]: begin token, words, end of text, then more ends of text as padding
    words: tuple[Word, ...]
    length: int  # tokens that are not padding, begin and end counted


class Tokenizer:
    """CLIP's tokenizer from a folder with vocab.json and merges.txt; never from the network.

    `words.txt` beside them, if there, lists the only words the model was trained on.
    Raises MineditError where the folder is not such a tokenizer.
    """

    def __init__(self, folder: str | Path, context_length: int) -> None:
        folder = Path(folder)
        absent = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if absent:
            raise MineditError(f"no CLIP tokenizer in {folder}: {' and '.join(absent)} not found; reinstall minedit")
        self.context_length = context_length
        self._clip = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        self.bos: int = self._clip.bos_token_id
        self.eos: int = self._clip.eos_token_id
        self.size = len(self._clip)  # rows of the embedding table
        listed = folder / "words.txt"
        self.words = frozenset(listed.read_text(encoding="utf-8").split()) if listed.is_file() else None

    def encode(self, text: str) -> Prompt:
        """Any text, also the empty one of the unconditional row. Raises MineditError where it is too long."""
        ids = self._ids(text)
        words = tuple(self._words(ids))
        room = self.context_length - 2
        if len(ids) > room:
            cut = next(i for i, word in enumerate(words) if word.tokens.stop > room + 1)
            kept = " ".join(["...", *(word.text for word in words[:cut])])[-QUOTE:]
            lost = " ".join([*(word.text for word in words[cut:]), "..."])[:QUOTE]
            raise MineditError(
                f"prompt has {len(ids)} tokens, the model reads {room}: it would be cut at '{kept} | {lost}'; shorten"
            )
        row = [self.bos, *ids, self.eos]
        padding = [self.eos] * (self.context_length - len(row))
        return Prompt(text, tuple(row + padding), words, len(row))

    def pieces(self, text: str) -> tuple[str, ...]:
        """The vocabulary entries `text` is spelt with, such as "pic", "nic</w>"."""
        return tuple(self._clip.convert_ids_to_tokens(self._ids(text)))

    def unknown(self, prompt: Prompt) -> tuple[str, ...]:
        """Words of `prompt` that the model was never trained on, each once; none where no list says so."""
        if self.words is None:
            return ()
        return tuple(dict.fromkeys(word.text for word in prompt.words if word.text not in self.words))

    def _ids(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MineditError(f"prompt is not Unicode text ({error.reason}); type it again in UTF-8") from error
        return self._clip(text, add_special_tokens=False).input_ids

    def _words(self, ids: list[int]) -> Iterator[Word]:
        """CLIP marks the last piece of each word with </w>; a special token typed into the prompt has no mark."""
        pieces, start = self._clip.convert_ids_to_tokens(ids), 0
        for stop, piece in enumerate(pieces, 1):
            if piece.endswith("</w>") or ids[stop - 1] in (self.bos, self.eos):
                text = self._clip.convert_tokens_to_string(pieces[start:stop]).replace("</w>", "")
                yield Word(text.strip(), range(start + 1, stop + 1))
                start = stop


def foreign(text: str) -> tuple[str, ...]:
    """The marks of other programs, A1111's and its kin's, in a prompt: CLIP reads them as the characters they are."""
    return tuple(dict.fromkeys(FOREIGN.findall(text)))


@dataclass(frozen=True)
class WordPair:
    word: int  # index in the target's words
    kind: str  # "kept" | "replaced" | "inserted"
    source: tuple[int, ...]  # indices in the source's words: none when inserted, one or, when replaced, a whole run


@dataclass(frozen=True)
class Alignment:
    pairs: tuple[WordPair, ...]  # one for each word of the target, in order
    removed: tuple[int, ...]  # words of the source without a counterpart

    @property
    def changed(self) -> tuple[int, ...]:
        """The replaced and inserted words, as indices in the target."""
        return tuple(pair.word for pair in self.pairs if pair.kind != "kept")

    @property
    def key_words(self) -> tuple[str, tuple[int, ...]]:
        """The edit's key words: ("target", changed), or ("source", removed) where words were only taken away."""
        return ("target", self.changed) if self.changed else ("source", self.removed)

    @property
    def identical(self) -> bool:
        """The two prompts are the same words."""
        return not self.changed and not self.removed

    @property
    def disjoint(self) -> bool:
        """No word was kept, and something differs."""
        return not self.identical and all(pair.kind != "kept" for pair in self.pairs)


def align(source: Prompt, target: Prompt) -> Alignment:
    """Which words of `target` are kept from, stand for, or are new to those of `source`.

    A run of words that stands for a run of as many goes word by word, "red cat" to "blue dog"; else each of its words
    stands for the whole run.
    """
    old, new = ([word.text.lower() for word in prompt.words] for prompt in (source, target))
    pairs: list[WordPair] = []
    removed: list[int] = []
    for tag, i, i_end, j, j_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            pairs += [WordPair(j + k, "kept", (i + k,)) for k in range(j_end - j)]
        elif tag == "replace" and i_end - i == j_end - j:
            pairs += [WordPair(j + k, "replaced", (i + k,)) for k in range(j_end - j)]
        elif tag == "replace":
            pairs += [WordPair(word, "replaced", tuple(range(i, i_end))) for word in range(j, j_end)]
        elif tag == "insert":
            pairs += [WordPair(word, "inserted", ()) for word in range(j, j_end)]
        else:
            removed += range(i, i_end)
    return Alignment(tuple(pairs), tuple(removed))


def by_position(source: Prompt, target: Prompt) -> Alignment:
    """The alignment of prompts of as many words in which each word stands for the one in its place."""
    same = (old.text.lower() == new.text.lower() for old, new in zip(source.words, target.words, strict=True))
    return Alignment(tuple(WordPair(i, "kept" if each else "replaced", (i,)) for i, each in enumerate(same)), ())


def column_map(source: Prompt, target: Prompt, alignment: Alignment, spread: str = "mean") -> tuple[Tensor, Tensor]:
    """R [T,T] float32 with P_s @ R in the target's token order, and has_source [T] bool.

    A kept token reads its own old column, and so does one of a replaced word of as many tokens. Where k tokens are
    replaced by m others, of a word or of a run of words, each of these reads the k columns' mean or, with `spread`
    "sum", their sum over m: then the m have as much attention as the k had, with the mean m/k times as much. An
    inserted token reads nothing, its column of R is 0. Begin reads begin, end of text reads end of text, padding the
    source's padding as far behind its end, or its last token where there is none so far.
    """
    size = len(target.ids)
    R = torch.zeros(size, len(source.ids))  # [own, source] here, so that a row is what one token reads
    R[0, 0] = 1
    runs: dict[tuple[int, ...], list[int]] = {}  # words of the source → those of the target that stand for them
    for pair in alignment.pairs:
        if pair.source:
            runs.setdefault(pair.source, []).append(pair.word)
    for old, new in runs.items():
        read = [token for i in old for token in source.words[i].tokens]
        own = [token for i in new for token in target.words[i].tokens]
        if len(read) == len(own) and len(old) == len(new) == 1:
            R[own, read] = 1
        else:
            R[torch.tensor(own)[:, None], read] = 1 / len(read if spread == "mean" else own)
    ends = torch.arange(target.length - 1, size)  # end of text, padding
    R[ends, (ends + source.length - target.length).clamp(max=len(source.ids) - 1)] = 1
    return R.T.contiguous(), R.any(dim=1)
