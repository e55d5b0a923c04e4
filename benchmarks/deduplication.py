"""MinHash signatures beside datasketch and rensa, and what near-deduplication finds of what it should.

    python benchmarks/deduplication.py speed --files pages.jsonl --rounds 5
    python benchmarks/deduplication.py quality --files pages.jsonl more.txt

`speed`: 128 hash functions over 5-grams of words, CPU time a document, the best of five passes in a process of its own. Twice: from
the text (cutting it into n-grams is part of it: theirs are joined in Python, as their users do) and from the n-grams themselves,
of which each side gets what it takes: strings for datasketch and rensa, 64-bit hashes for us (we never make strings) and for one of
rensa's bulk forms.

`quality`: pairs of documents with a Jaccard similarity of at least 0.8, found exactly by counting common 5-grams of all pairs,
against the clusters that each method makes. To the documents copies of some are added in which words (English) or characters
(Chinese) are left out, put in and replaced. Recall: the share of the pairs that are in one cluster. Precision: of the documents that
are taken out, the share that is that similar to another one of its cluster (and at 0.5, for methods that aim lower).
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llmfactory.data.clean.characters import count_unspaced
from llmfactory.data.clean.comparison import Comparison
from llmfactory.data.clean.dedup_spec import Minhash, Simhash, Unit, Verify
from llmfactory.data.clean.minhash import MinhashComparison
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import shingles
from llmfactory.data.clean.simhash import SimhashComparison
from llmfactory.data.clean.union import clusters
from llmfactory.data.source.account import Account
from llmfactory.data.source.spec import Files

HASHES, N, SHORTEST, SIMILAR, LEAST = 128, 5, 200, 0.8, 0.5
OURS = partial(Minhash, ngram=N, bands=16, rows=8)


def documents(files: Sequence[str], most: int, longest: int = 1 << 30) -> list[str]:
    """Different texts: records, or lines of plain text, evenly chosen."""
    texts: dict[str, None] = {}
    source = Files(files=list(files), bad_share=1.0).build()
    for unit in source.units():
        for document in source.documents(unit, Account(1.0, "bad_share")):
            for text in document.text.splitlines() if ".txt" in document.name else [document.text]:
                if len(text) >= (SHORTEST if count_unspaced(text) * 2 < len(text) else SHORTEST // 3):
                    texts[text[:longest]] = None
    every = list(texts)
    return every[:: max(1, len(every) // most)][:most]


# Speed


def strings(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[i : i + N]) for i in range(max(1, len(words) - N + 1))]


def bytes_of(grams: Sequence[str]) -> list[bytes]:
    return [gram.encode() for gram in grams]


def datasketch_update(grams: Sequence[Sequence[str]]) -> None:
    from datasketch import MinHash

    for its in grams:
        signature = MinHash(HASHES, seed=1)
        for gram in its:
            signature.update(gram.encode())


def datasketch_bulk(grams: Sequence[Sequence[str]]) -> None:
    from datasketch import MinHash

    MinHash.bulk([bytes_of(its) for its in grams], num_perm=HASHES, seed=1)


def rensa_update(grams: Sequence[Sequence[str]]) -> None:
    from rensa import RMinHash

    for its in grams:
        signature = RMinHash(HASHES, 1)
        signature.update(its)
        signature.digest()


def rensa_matrix(grams: Sequence[Sequence[str]]) -> None:
    from rensa import RMinHash

    RMinHash.digest_matrix_from_token_sets(grams, HASHES, 1)


def rensa_hashes(hashes: Sequence[Sequence[int]]) -> None:
    from rensa import RMinHash

    RMinHash.digest_matrix_from_token_hash_sets(hashes, HASHES, 1)


PEERS: dict[str, Callable[[Sequence[Sequence[str]]], None]] = {
    "datasketch update": datasketch_update,
    "datasketch bulk": datasketch_bulk,
    "rensa update": rensa_update,
    "rensa matrix": rensa_matrix,
}


def work(variant: str, texts: list[str]) -> Callable[[], Any]:
    """What is timed."""
    name, _, start = variant.rpartition(", ")
    comparison = MinhashComparison(OURS())
    if name == "ours" and start == "text":
        return lambda: comparison.signatures(texts)
    chunks = list(shingles(texts, N, Unit.words))
    if name == "ours":
        return lambda: [comparison.lower(np.full((len(texts), HASHES), 0xFFFFFFFF, np.uint32), chunk) for chunk in chunks]
    if name == "rensa hashes":
        hashes = [part.tolist() for chunk in chunks for part in np.split(chunk.hashes, chunk.starts[1:])]
        return lambda: rensa_hashes(hashes)
    if start == "text":
        return lambda: PEERS[name]([strings(text) for text in texts])
    grams = [strings(text) for text in texts]
    return lambda: PEERS[name](grams)


def sample(variant: str, texts: list[str]) -> None:
    """Microseconds a document."""
    what, best = work(variant, texts), float("inf")
    for _ in range(2 if "datasketch" in variant else 6):
        start = time.process_time()
        what()
        best = min(best, time.process_time() - start)
    print(best / len(texts) * 1e6)


def speed(arguments: argparse.Namespace) -> None:
    from benchmarks.harness import interleave

    texts = documents(arguments.files, arguments.documents, longest=2000)
    size, grams = sum(map(len, texts)) / len(texts), sum(len(strings(text)) for text in texts) / len(texts)
    print(f"{len(texts)} documents of {size:.0f} characters and {grams:.0f} 5-grams on average\n")
    tail = ["--documents", str(arguments.documents), "--files", *arguments.files]
    for start, names in (("text", ["ours", *PEERS]), ("n-grams", ["ours", "rensa hashes", *PEERS])):
        variants = {name: [__file__, "speed", "--sample", f"{name}, {start}", *tail] for name in names}
        print(f"From {start}:\n")
        numbers = interleave(variants, "ours", arguments.rounds, "us/document", {"RAYON_NUM_THREADS": "1"})
        for name, values in numbers.items():
            ratios = sorted(value / own for value, own in zip(values, numbers["ours"], strict=True))
            print(f"{name}: {ratios[len(ratios) // 2]:.2f} x our time ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        print()


# Quality


def similar(texts: list[str], least: float) -> dict[tuple[int, int], float]:
    """Jaccard similarity of all pairs that have at least that, by counting common n-grams of all pairs."""
    from scipy.sparse import csr_matrix

    sets = [np.empty(0, np.uint64)] * len(texts)
    for number, text in enumerate(texts):
        parts = [chunk.hashes for chunk in shingles([text], N, Unit.words)]
        sets[number] = np.unique(np.concatenate(parts)) if parts else sets[number]
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    sizes = np.array([len(its) for its in sets])
    table = csr_matrix((np.ones(len(columns), np.int32), columns, np.concatenate([[0], np.cumsum(sizes)])))
    common = (table @ table.T).tocoo()
    keep = common.row < common.col
    a, b, shared = common.row[keep], common.col[keep], common.data[keep]
    j = shared / (sizes[a] + sizes[b] - shared)
    return {(int(x), int(y)): float(z) for x, y, z in zip(a, b, j, strict=True) if z >= least}


def edited(draw: random.Random, text: str, share: float) -> str:
    """A copy in which that share of words (or of characters, where there are no spaces) is left out, doubled or replaced."""
    spaced = len(text.split()) > len(text) / 20
    units = text.split(" ") if spaced else list(text)
    found: list[str] = []
    for unit in units:
        how = draw.random() / share if share else 9.0
        if how < 1:
            found += [] if how < 0.34 else [unit, draw.choice(units)] if how < 0.67 else [draw.choice(units)]
        else:
            found.append(unit)
    return (" " if spaced else "").join(found)


def ours(comparison: Comparison, texts: list[str]) -> dict[int, int]:
    """The first of the cluster of each document that is in one."""
    keys = comparison.keys([Page("", text) for text in texts])
    order = np.lexsort((keys.item, keys.page, keys.key))
    table: Any = keys.evidence
    evidence = np.empty(0).__getitem__ if table is None else table.__getitem__
    copies = comparison.copies(keys.key[order], keys.page[order], keys.item[order], evidence)
    final = comparison.verdicts(copies, evidence)
    first = final.first.tolist()
    return {**dict(zip(first, first, strict=True)), **dict(zip(final.document.tolist(), first, strict=True))}


def datasketch_lsh(texts: list[str]) -> dict[int, int]:
    """Its index at the same threshold, with its own choice of bands."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=SIMILAR, num_perm=HASHES)
    left, right = [], []
    for number, signature in enumerate(MinHash.generator([bytes_of(strings_of_units(text)) for text in texts], num_perm=HASHES)):
        for other in index.query(signature):
            left.append(other)
            right.append(number)
        index.insert(number, signature)
    documents_, first = clusters(np.array(left, np.int64), np.array(right, np.int64))
    return dict(zip(documents_.tolist(), first.tolist(), strict=True))


def strings_of_units(text: str) -> list[str]:
    """The same n-grams as ours, by their hashes."""
    return [str(value) for chunk in shingles([text], N, Unit.words) for value in chunk.hashes.tolist()]


METHODS: dict[str, Callable[[list[str]], dict[int, int]]] = {
    "minhash (20 x 6, signatures compared)": partial(ours, MinhashComparison(Minhash())),
    "minhash verify=sketch": partial(ours, MinhashComparison(Minhash(verify=Verify.sketch))),
    "minhash_fineweb (14 x 8)": partial(ours, MinhashComparison(Minhash(bands=14, rows=8, verify=Verify.none))),
    "minhash_refinedweb (450 x 20)": partial(ours, MinhashComparison(Minhash(bands=450, rows=20, verify=Verify.none))),
    "datasketch LSH, 128": datasketch_lsh,
    "simhash (3 of 64 bits)": partial(ours, SimhashComparison(Simhash())),
    "simhash distance=6 blocks=9": partial(ours, SimhashComparison(Simhash(distance=6, blocks=9))),
}


def measured(found: dict[int, int], pairs: dict[tuple[int, int], float]) -> Iterator[float]:
    """Recall of pairs at 0.8, 0.9 and 0.95, and precision of what is taken out at 0.8 and 0.5."""
    for least in (SIMILAR, 0.9, 0.95):
        true = [pair for pair, j in pairs.items() if j >= least]
        yield sum(a in found and found.get(b) == found[a] for a, b in true) / max(1, len(true))
    gone = {number for number, first in found.items() if number != first}
    together = [(pair, j) for pair, j in pairs.items() if pair[0] in found and found.get(pair[1]) == found[pair[0]]]
    for least in (SIMILAR, LEAST):
        right = {number for pair, j in together if j >= least for number in pair}
        yield len(gone & right) / max(1, len(gone))


def quality(arguments: argparse.Namespace) -> None:
    draw = random.Random(0)
    texts = documents(arguments.files, arguments.documents)
    copies = [
        edited(draw, draw.choice(texts), draw.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05))) for _ in range(len(texts) // 2)
    ]
    for name, its in (("as they are", texts), ("and edited copies", texts + copies)):
        pairs = similar(its, LEAST)
        counts = [sum(j >= least for j in pairs.values()) for least in (SIMILAR, 0.9, 0.95)]
        print(f"\n{len(its)} documents, {name}: {counts[0]} pairs at J >= {SIMILAR}, {counts[1]} at 0.9, {counts[2]} at 0.95\n")
        print(
            "| method | recall J >= 0.8 | >= 0.9 | >= 0.95 | taken out | precision J >= 0.8 | >= 0.5 |\n|---|---|---|---|---|---|---|"
        )
        for method, how in METHODS.items():
            found = how(its)
            gone = sum(number != first for number, first in found.items())
            *recall, right, near = (f"{share:.3f}" for share in measured(found, pairs))
            print(f"| {method} | {' | '.join(recall)} | {gone} | {right} | {near} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "quality"])
    parser.add_argument(
        "--files", nargs="+", required=True, help="JSON lines with a field text, or plain text, a document a line"
    )
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", help="one measurement in this process")
    arguments = parser.parse_args()
    if arguments.sample:
        sample(arguments.sample, documents(arguments.files, arguments.documents, longest=2000))
    else:
        {"speed": speed, "quality": quality}[arguments.what](arguments)


if __name__ == "__main__":
    main()
