"""Small tokenizers of every family that devices meet, and what the `tokenizers` library makes of texts with them.

python tests/vectors/make_tokenizers.py trains them anew and writes `tokenizers/*.json`: `texts.json` the texts,
`bad.json` components that a client without the library refuses, and one file for each tokenizer with its
`tokenizer.json`, the ids of each text without marks (`documents`) and of each as a row of at most `limit` ids (`rows`).
"""

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent / "tokenizers"
LIMIT = 12
CORPUS = [
    "The quick brown fox jumps over the lazy dog. She didn't know that they'll come; I'm sure we've met before.",
    "Once upon a time there was a little girl who lived in a small house near the forest, and the house was warm.",
    "Über den Wolken muß die Freiheit wohl grenzenlos sein. Süße Grüße aus Köln, schöne Straßen und Brücken!",
    "Où est le café? Très élégant, déjà vu, naïve façade. L'été, c'était la fête de l'hôtel à côté.",
    "日本語の文章を書きます。今日は天気がいいですね。東京と京都。ひらがなとカタカナ。",
    "我们今天去公园散步，天气很好。人工智能正在改变世界。",
    "Привет, как дела? Сегодня хорошая погода и мы идём гулять.",
    "안녕하세요 오늘 날씨가 좋네요. مرحبا كيف حالك اليوم",
    "def train(model, steps=100):\n    for step in range(steps):\n        loss = model(step)\n    return loss\n",
    "In 2024, 1,234,567 people paid $3.50 for 12 apples (50% off). E-mail: someone@example.org, see https://example.org/x",
    "😀 🎉 👍🏽 👨‍👩‍👧 🇩🇪 emoji are here too ❤️",
    "the cat and the hat; the mat on the floor; there, then, these, those, other mothers and brothers",
]
TEXTS = [
    "", " ", "  ", "\n", "\t\n  \r\n", "a", "Hello world", "Hello, world!  How   are you?", " leading and trailing ",
    "I'm sure they'll say it's we've DON'T 'S 'LL 'ſ", "The quick brown fox.\n\nNew paragraph\nline\r\nwindows",
    "ÀÉÎÕÜ àéîõü ñ ç ß ẞ ø Å Å ﬁ ﬀ", "e\u0301 combining n\u0303 o\u0308\u0323 \u1e69 \ud55c\uae00 \u1112\u1161\u11ab",
    "İstanbul ΑΣ ΣΑΣ ὈΔΥΣΣΕΎΣ ǅ ŉ", "日本語とEnglishの混在、テスト。", "我们今天去公园散步，天气很好。",
    "𠀀𪜀 丽 rare signs 㐀",
    "안녕하세요 세계", "Привет, мир! Ёлка", "مرحبا بالعالم ١٢٣ ۴۵", "नमस्ते दुनिया कि", "สวัสดีชาวโลก", "שלום עולם",
    "😀😃 👨‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ ☺", "1 12 123 1234 12345 3.14159 1,000,000 ½ Ⅷ ² ①",
    "tabs\tand\u00a0hard\u2003spaces\u3000here\u200bzero\u200dwidth\ufeff", "control\x00\x07\x1b\x7f\u0085chars\ufffd",
    "snake_case camelCase kebab-case x+=1; // comment", "for (int i=0;i<10;++i) { a[i] = b[i] & 0xFF; }",
    "https://example.org/a/b?c=d#e someone@example.org", "«quotes» “curly” ‘single’ — dash … ellipsis · dot",
    "<s> text </s> <unk> [CLS] [SEP] <|endoftext|> x<mask>y  <mask>  z", "<|eot|><|eot|> <|endoftext|>after",
    "▁underscore▁ here▁▁two  ▁", "supercalifragilisticexpialidocious antidisestablishmentarianism" * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  bbbbbbbbbbbbbbbb", "word\u2028line\u2029para", "ends with spaces   ",
    "   starts",
    "the cat and the hat and then those other mothers", "Süße Grüße aus Köln", "L'été déjà vu, c'était l'hôtel",
    "if\n\n\n  x:\n        pass\n", "\u0301 lone mark", "\U0001d54f\U0001d7d8 math", "x" * 150, "é" * 40, "?!?!...;;--",
]  # fmt: skip

GPT2_LIKE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join([
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
])  # fmt: skip
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!-/:-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
ByteLevel, Split, Sequence = pre_tokenizers.ByteLevel, pre_tokenizers.Split, pre_tokenizers.Sequence


def byte_level(pre: Any, special: list[str | AddedToken], size: int = 420, **options: Any) -> Tokenizer:
    """BPE over bytes, as GPT-2 and most after it."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=ByteLevel.alphabet(), special_tokens=special,
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    return tokenizer


def sentencepiece_bpe(tokenizer: Tokenizer, size: int = 620) -> Tokenizer:
    """BPE over characters with bytes for what is unknown, as Llama 2 and Mistral."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    data = json.loads(tokenizer.to_str())  # the bytes are ordinary tokens of the model, not added ones
    data["added_tokens"] = data["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(data))


def template(tokenizer: Tokenizer, single: str) -> Any:
    """Marks around a text."""
    names = [w for w in single.split() if not w.startswith("$")]
    return processors.TemplateProcessing(single=single, special_tokens=[(n, tokenizer.token_to_id(n)) for n in names])


def gpt2() -> Tokenizer:
    """GPT-2: the words cut by ByteLevel itself."""
    return byte_level(ByteLevel(add_prefix_space=False), ["<|endoftext|>"])


def roberta() -> Tokenizer:
    """RoBERTa: a space before every text, and a mask that takes the space before it."""
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    tokenizer = byte_level(ByteLevel(add_prefix_space=True), ["<s>", "<pad>", "</s>", "<unk>", mask])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, True)
    return tokenizer


def llama3() -> Tokenizer:
    """Llama 3: an expression, then bytes; whole words first."""
    pre = Sequence([Split(Regex(GPT2_LIKE), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = byte_level(pre, ["<|begin|>", "<|eot|>"], ignore_merges=True)
    marks = template(tokenizer, "<|begin|> $A")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), marks])
    return tokenizer


def qwen() -> Tokenizer:
    """Qwen: composed first, digits one by one."""
    expression = GPT2_LIKE.replace("{1,3}", "")
    pre = Sequence([Split(Regex(expression), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = byte_level(pre, ["<|endoftext|>"], byte_fallback=False)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def o200k() -> Tokenizer:
    """GPT-4o and what follows it: capitals cut off."""
    pre = Sequence([Split(Regex(O200K), "removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)])
    return byte_level(pre, ["<|endoftext|>"])


def deepseek() -> Tokenizer:
    """DeepSeek: several expressions one after another, and digits apart."""
    cuts = [Split(Regex(e), "isolated") for e in DEEPSEEK]
    pre = Sequence([*cuts, pre_tokenizers.Digits(individual_digits=False), ByteLevel(False, use_regex=False)])
    return byte_level(pre, ["<|begin|>"])


def bloom() -> Tokenizer:
    """BLOOM: classes within classes."""
    return byte_level(Sequence([Split(Regex(BLOOM), "isolated"), ByteLevel(False, use_regex=False)]), ["<s>"])


def clip() -> Tokenizer:
    """CLIP: lower case, spaces as one, and a mark at the end of each word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = Sequence([Split(Regex(CLIP), "removed", invert=True), ByteLevel(add_prefix_space=False)])
    marks: list[str | AddedToken] = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=marks, initial_alphabet=ByteLevel.alphabet(),
                                  end_of_word_suffix="</w>", show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("<|endoftext|>", 1), ("<|startoftext|>", 0), False, False)
    return tokenizer


def llama2() -> Tokenizer:
    """Llama 2: the text as one piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    tokenizer = sentencepiece_bpe(tokenizer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = template(tokenizer, "<s> $A")
    return tokenizer


def mistral() -> Tokenizer:
    """Newer files of Llama 2 and Mistral: Metaspace before the first piece only."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=True)
    tokenizer = sentencepiece_bpe(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.post_processor = template(tokenizer, "<s> $A </s>")
    return tokenizer


def characters() -> Tokenizer:
    """Characters and no bytes: what is unknown is one token for a whole run."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<s>"], limit_alphabet=50, show_progress=False
    )
    tokenizer.train_from_iterator([w for text in CORPUS for w in text.split()], trainer)
    return tokenizer


def gemma() -> Tokenizer:
    """Gemma: spaces replaced, then cut after each."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = Split(" ", "merged_with_previous")
    return sentencepiece_bpe(tokenizer, 560)


def bert(name: str, **options: Any) -> Tokenizer:
    """BERT: words, then pieces of words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=520, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.post_processor = (
        template(tokenizer, "[CLS] $A [SEP]")
        if name == "uncased"
        else processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    )
    return tokenizer


def unigram(normalizer: Any, **options: Any) -> Tokenizer:
    """T5, ALBERT, XLM-R: the likeliest cut."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=360, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
                                      show_progress=False, **options)  # fmt: skip
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.post_processor = template(tokenizer, "$A </s>")
    return tokenizer


def albert() -> Tokenizer:
    """Unigram after decomposition, quotes replaced and spaces made one."""
    steps = [normalizers.Nmt(), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(),
             normalizers.Replace("``", '"'), normalizers.Replace(Regex(" {2,}"), " ")]  # fmt: skip
    return unigram(normalizers.Sequence(steps))


def t5() -> Tokenizer:
    """Unigram after SentencePiece's own table of replacements."""
    steps = [normalizers.Precompiled(charsmap(REPLACEMENTS)), normalizers.Strip(left=False, right=True),
             normalizers.Replace(Regex(" {2,}"), "▁")]  # fmt: skip
    return unigram(normalizers.Sequence(steps))


def spelled() -> Tokenizer:
    """Unigram that spells what it does not know as bytes."""
    tokenizer = unigram(normalizers.NFKC())
    data = json.loads(tokenizer.to_str())
    data["model"]["byte_fallback"] = True
    data["model"]["vocab"] += [[f"<0x{i:02X}>", -20.0] for i in range(256)]
    return Tokenizer.from_str(json.dumps(data))


def words() -> Tokenizer:
    """Whole words, and every other way to cut."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Strip()])
    cuts = [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(True),
            pre_tokenizers.CharDelimiterSplit("_"), Split("th", "merged_with_next")]  # fmt: skip
    tokenizer.pre_tokenizer = Sequence(cuts)
    tokenizer.train_from_iterator(CORPUS * 2, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    tokenizer.add_tokens([AddedToken("fox", single_word=True), AddedToken("house", lstrip=True, rstrip=True)])
    return tokenizer


REPLACEMENTS = {"ﬁ": "fi", "ﬀ": "ff", "½": "1/2", "\u00a0": " ", "\u3000": " ", "é": "é", "e\u0301": "é", "\t": " ",
                "\n": " ", "\x07": "", "①": "1", "，": ",", "\u200b": " ", "…": "..."}  # fmt: skip


def charsmap(table: dict[str, str]) -> bytes:
    """SentencePiece's table: a double-array trie over UTF-8, its length before it, the replacements after it."""
    texts, places = b"", {}
    for key, value in table.items():
        places[key.encode()] = len(texts)
        texts += value.encode() + b"\0"
    units = [0] * 2048
    used = {0}

    def place(at: int, keys: list[bytes], depth: int, label: int) -> None:
        here = [k for k in keys if len(k) == depth]
        labels = sorted({k[depth] for k in keys if len(k) > depth})
        base = next(b for b in range(1, 1 << 20) if not {at ^ b, *(at ^ b ^ c for c in labels)} & used)
        used.update({at ^ base, *(at ^ base ^ c for c in labels)})
        units[at] = (base << 10) | (0x100 if here else 0) | label
        if here:
            units[at ^ base] = places[here[0]] | 1 << 31
        for c in labels:
            place(at ^ base ^ c, [k for k in keys if len(k) > depth and k[depth] == c], depth + 1, c)

    place(0, sorted(places), 0, 0)
    size = -(-(max(used) + 1) // 256) * 256
    return struct.pack("<I", 4 * size) + struct.pack(f"<{size}I", *units[:size]) + texts


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2, "roberta": roberta, "llama3": llama3, "qwen": qwen, "o200k": o200k, "deepseek": deepseek,
    "bloom": bloom, "clip": clip, "llama2": llama2, "mistral": mistral, "characters": characters, "gemma": gemma,
    "bert-uncased": lambda: bert("uncased", lowercase=True), "bert-cased": lambda: bert("cased", lowercase=False),
    "albert": albert, "t5": t5, "spelled": spelled, "words": words,
}  # fmt: skip


def rows(tokenizer: Tokenizer) -> list[list[int]]:
    """Each text as a row of at most LIMIT ids."""
    tokenizer.enable_truncation(LIMIT)
    found = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.no_truncation()
    return found


def family_file(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer, and what it makes of the texts."""
    documents = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    return {
        "limit": LIMIT,
        "tokenizer": json.loads(tokenizer.to_str()),
        "documents": documents,
        "rows": rows(tokenizer),
    }


def bad_file() -> dict[str, Any]:
    """Files that a client without the library refuses; `names` is what its sentence must name."""
    model = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}

    def split(expression: str) -> dict[str, Any]:
        pattern = {"Regex": expression}
        return {"pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": pattern}}

    rows: list[tuple[str, str, dict[str, Any]]] = [
        ("a normalizer", "normalizer Reverse", {"normalizer": {"type": "Reverse"}}),
        ("one within a sequence", "normalizer Reverse",
         {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Reverse"}]}}),
        ("a pre-tokenizer", "pre-tokenizer UnicodeScripts", {"pre_tokenizer": {"type": "UnicodeScripts"}}),
        ("a model", "model Markov", {"model": {"type": "Markov"}}),
        ("a post-processor", "post-processor Envelope", {"post_processor": {"type": "Envelope"}}),
        ("a pair of texts in the template", "post-processor TemplateProcessing",
         {"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}}),
        ("tokens that are drawn", "dropout", {"model": {**bpe, "dropout": 0.1}}),
        ("a back reference", r"(a)\1", split(r"(a)\1")),
        ("a repetition that is possessive elsewhere", r"a{1,3}+", split(r"a{1,3}+")),
        ("a bracket of POSIX", "[[:alpha:]]", split("[[:alpha:]]")),
        ("an unknown property", r"\p{Nonsense}", split(r"\p{Nonsense}")),
        ("no model", "model", {"model": None}),
        ("a merge of what is not there", "merges", {"model": {**bpe, "merges": [["a", "c"]]}}),
        ("a delimiter of nothing", "delimiter", {"pre_tokenizer": {"type": "CharDelimiterSplit", "delimiter": ""}}),
        ("an id that is none", "vocab", {"model": {**bpe, "vocab": {"a": -1}}}),
        ("a text for a list", "normalizers", {"normalizer": {"type": "Sequence", "normalizers": "NFC"}}),
        ("a charsmap that is cut", "precompiled_charsmap",
         {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff\0\0\0").decode()}}),
    ]  # fmt: skip
    files = [{"name": name, "names": names, "tokenizer": {"model": model, **part}} for name, names, part in rows]
    return {"about": "tokenizer.json files to refuse, with what the sentence must name.", "cases": files}


def write(name: str, content: Any) -> None:
    """One file, a value a line at the top."""
    rows = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=True)}" for k, v in content.items())
    (HERE / name).write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    write("texts.json", {"texts": TEXTS})
    write("bad.json", bad_file())
    for name, make in FAMILIES.items():
        write(f"{name}.json", family_file(make()))
