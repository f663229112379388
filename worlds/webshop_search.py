"""WebShop's search: Lucene's BM25 over numpy arrays, without Lucene.

The same hits in the same order as the benchmark's index (Anserini 0.14.3, Lucene 8): all 50 of 1,200
queries on the 1,000-product set, word for word the same terms in every document. The index is a folder of
.npy files that are opened memory-mapped, so processes share its pages and an unused part costs nothing.

    write_index(["red shoes", "blue shoes"], folder)    # folder also needs asins.npy, the documents' names
    Index(folder).search("red shoe") -> (0, 1)
"""

import itertools
import math
import mmap
import re
from array import array
from bisect import bisect_left
from collections import Counter
from functools import lru_cache

import numpy as np
import regex

HITS = 50         # documents that a search returns
MAX_TERMS = 1024  # Lucene's limit of distinct words in a query; what comes after is dropped
STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these "
    "they this to was will with".split())
# Words by Unicode's default boundaries (UAX 29), as far as Lucene's StandardTokenizer keeps them: runs of
# letters, digits and underscores, held together by . ' : between letters and by . , ' ; between digits; runs
# of Katakana or of a script without spaces; single Han or Hiragana characters; flags; emoji, which at the
# time of that Unicode version meant stars, chess pieces and the like too. A mark belongs to what it follows.
LETTER = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]"
DIGIT = r"\p{WB=Numeric}"
MARKS = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
PICTURE = (
    r"[\p{Extended_Pictographic}\u2388\u2605\u2607-\u2612\u2616-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767"
    r"\U0001F000-\U0001F0FF\U0001F10D-\U0001F10F\U0001F249-\U0001F53D\U0001F546-\U0001F64F"
    r"\U0001F680-\U0001F6FF]")
RUN = (
    "(?:"
    rf"(?:{LETTER}|{DIGIT}|\p{{WB=ExtendNumLet}}){MARKS}"
    rf"|(?<={LETTER})[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}'](?={LETTER})"
    rf"|(?<={DIGIT})[\p{{WB=MidNum}}\p{{WB=MidNumLet}}'](?={DIGIT})"
    ")+")
WORD = regex.compile("|".join((
    RUN,
    rf"(?:\p{{WB=Katakana}}{MARKS})+",
    r"\p{LB=SA}+",
    rf"[\p{{Han}}\p{{Hiragana}}]{MARKS}",
    r"\p{RI}{2}",
    PICTURE + r"\p{WB=Extend}*(?:\u200D\p{Extended_Pictographic}\p{WB=Extend}*)*")))
ASCII_WORD = re.compile(
    r"\w+(?:(?:(?<=[A-Za-z])[.':](?=[A-Za-z])|(?<=\d)[.,;'](?=\d))\w+)*", re.ASCII)


# ---------------------------------------------------------------- words

@lru_cache
def _porter():
    """What Lucene's PorterStemFilter computes."""
    from nltk.stem.porter import PorterStemmer  # half a second that no other world has to wait

    return PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)


@lru_cache(1 << 18)
def _stem(word):
    return _porter().stem(word, to_lowercase=False) if len(word) > 2 else word


def _words(text):
    """Its words; those longer than 255 characters in pieces, as Lucene cuts them."""
    words = (ASCII_WORD if text.isascii() else WORD).findall(text)
    if max(map(len, words), default=0) < 256:
        return words
    return [word[start:start + 255] for word in words for start in range(0, len(word), 255)]


def analyse(text):
    """The terms of a text by Lucene's English analyser: words, no possessive 's, lower case, no stop words,
    Porter stems."""
    terms = []
    for word in _words(text):
        if word[-1:] in "sS" and word[-2:-1] in ("'", "’", "＇"):
            word = word[:-2]
        word = word.lower()
        if word.strip("_") and word not in STOP:
            terms.append(_stem(word))
    return terms


# ---------------------------------------------------------------- writing an index

def one_byte(length):
    """A document's length as Lucene stores it: exact below 40, then four significant bits.

    40 -> 40, 47 -> 46
    """
    if length < 40:
        return length
    shift = (length - 24).bit_length() - 4
    return 24 + (length - 24 >> shift << shift)


def length_factors(lengths, k1=0.9, b=0.4):
    """1 / (k1 (1 - b + b length / mean length)) per document, every operation in float32 as in Lucene."""
    k1, b, one = np.float32(k1), np.float32(b), np.float32(1)
    filled = max(1, np.count_nonzero(lengths))
    mean = np.float32(max(1, lengths.sum()) / filled)
    stored = np.array([one_byte(int(n)) for n in lengths], np.float32)
    return one / (k1 * ((one - b) + b * stored / mean))


class Counts:
    """The words of all documents, one document after the other."""

    def __init__(self):
        self.vocabulary = {}            # word -> its number, in the order of first sight
        self.lengths = array("i")       # words per document
        self.distinct = array("i")      # distinct words per document
        self.terms = array("i")         # their numbers
        self.counts = array("H")        # how often they occur

    def add(self, text):
        words = analyse(text)
        found = Counter(words)
        self.lengths.append(len(words))
        self.distinct.append(len(found))
        numbers = [self.vocabulary.setdefault(word, len(self.vocabulary)) for word in found]
        self.terms.extend(numbers)
        self.counts.extend([min(n, 65535) for n in found.values()])

    def alphabet(self):
        """(words as bytes, sorted; number of first sight -> place among them)"""
        names = sorted(word.encode("utf-8", "surrogatepass") for word in self.vocabulary)
        numbers = [self.vocabulary[name.decode("utf-8", "surrogatepass")] for name in names]
        place = np.empty(len(names), np.int32)
        place[numbers] = np.arange(len(names))
        return names, place


def write_index(texts, folder, block=1 << 22):
    """The inverted index of `texts` (iterable of str, in document order), as .npy files in `folder`.

    Per term t the postings starts[t]:starts[t+1]: the document and 1 + tf · (length factor), ascending by
    document. They are placed block by block, a counting sort, so that the peak is 10 bytes a posting.
    """
    seen = Counts()
    for text in texts:
        seen.add(text)
    names, place = seen.alphabet()
    terms = np.frombuffer(seen.terms, np.int32)
    lengths = np.frombuffer(seen.lengths, np.int32)
    starts = np.zeros(len(names) + 1, np.int64)
    starts[1:] = np.cumsum(np.bincount(place[terms], minlength=len(names)))
    _place(seen, place, starts, length_factors(lengths), folder, block)
    np.save(folder / "starts.npy", starts)
    np.save(folder / "lengths.npy", lengths)
    _write_blobs(names, folder / "terms")


def _place(seen, place, starts, factors, folder, block):
    """Writes docs.npy and ratios.npy: the postings (document by document in `seen`) grouped by term."""
    terms = np.frombuffer(seen.terms, np.int32)
    counts = np.frombuffer(seen.counts, np.uint16)
    distinct = np.frombuffer(seen.distinct, np.int32)
    docs = np.lib.format.open_memmap(folder / "docs.npy", "w+", np.int32, terms.shape)
    ratios = np.lib.format.open_memmap(folder / "ratios.npy", "w+", np.float32, terms.shape)
    owner = np.repeat(np.arange(len(distinct), dtype=np.int32), distinct)  # posting -> its document
    free = starts[:-1].copy()
    for low in range(0, len(terms), block):
        part = slice(low, low + block)
        term = place[terms[part]]
        order = np.argsort(term, kind="stable")
        term, doc = term[order], owner[part][order]
        present, first, size = np.unique(term, return_index=True, return_counts=True)
        at = free[term] + np.arange(len(term)) - np.repeat(first, size)
        docs[at] = doc
        ratios[at] = np.float32(1) + counts[part][order].astype(np.float32) * factors[doc]
        free[present] += size


def _write_blobs(blobs, stem):
    """Byte strings one after the other in STEM.bin, their boundaries in STEM.npy."""
    with open(f"{stem}.bin", "wb") as file:
        ends = list(itertools.accumulate(file.write(blob) for blob in blobs))
    np.save(f"{stem}.npy", np.array([0, *ends], np.int64))


class Blobs:
    """What `_write_blobs` wrote, as a memory-mapped sequence of bytes."""

    def __init__(self, stem):
        self.ends = np.asarray(np.load(f"{stem}.npy", mmap_mode="r"))
        self.bytes = b""
        if len(self) and self.ends[-1]:     # nothing cannot be mapped
            with open(f"{stem}.bin", "rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        return self.bytes[self.ends[i]:self.ends[i + 1]]


# ---------------------------------------------------------------- searching it

class Index:
    """The search index of a catalogue: `search(query)` -> document numbers, best first.

    Scores are Lucene's: per term boost · idf · (1 - 1 / (1 + tf · length factor)) in float32, summed in
    float64, rounded to float32; equal scores in the order of the asin, Anserini's rule.
    """

    def __init__(self, folder):
        self.starts = _mapped(folder, "starts")
        self.docs = _mapped(folder, "docs")
        self.ratios = _mapped(folder, "ratios")
        self.asins = _mapped(folder, "asins")
        self.terms = Blobs(folder / "terms")
        self.size = len(self.asins)
        self.filled = int(np.count_nonzero(_mapped(folder, "lengths")))
        self.search = lru_cache(1024)(self._search)  # paging through results asks again and again

    def _postings(self, term):
        """slice of the term's postings, or None."""
        key = term.encode("utf-8", "surrogatepass")
        at = bisect_left(self.terms, key)
        known = at < len(self.terms) and self.terms[at] == key
        return slice(int(self.starts[at]), int(self.starts[at + 1])) if known else None

    def _terms(self, query):
        """[(the most that the term adds to any document, its weight, its postings)], the heaviest first."""
        terms = []
        for term, boost in list(Counter(analyse(query)).items())[:MAX_TERMS]:
            span = self._postings(term)
            if span is None:
                continue
            frequency = span.stop - span.start
            idf = math.log(1 + (self.filled - frequency + 0.5) / (frequency + 0.5))
            weight = np.float32(boost) * np.float32(idf)
            terms.append((float(weight - weight / self.ratios[span].max()), weight, span))
        return sorted(terms, key=lambda term: -term[0])

    def _search(self, query):
        """Adds up term by term, the heaviest first. Once the remaining terms, which are the common ones with
        the long lists, cannot lift a document into the hits any more, they are looked up only for the
        documents that are still in the running."""
        terms = self._terms(query)
        total = np.zeros(self.size)             # of each document
        left = sum(most for most, _, _ in terms)    # the most that the terms to come may add
        floor, done = 0.0, 0
        while done < len(terms) and left >= floor:
            most, weight, span = terms[done]
            docs = self.docs[span].astype(np.intp)
            total[docs] += weight - weight / self.ratios[span]
            done, left = done + 1, left - most
            floor = _raise(floor, total[docs])
        found = np.flatnonzero(_near(total, floor, left)).astype(np.int32)
        for most, weight, span in terms[done:]:
            self._add(total, found, weight, span)
            left -= most
            found = found[_near(total[found], floor, left)]
        return self._ranked(found, total[found].astype(np.float32))

    def _add(self, total, found, weight, span):
        """A term's share for the documents `found` (ascending); also for others, where that is quicker."""
        docs, ratios = self.docs[span], self.ratios[span]
        if len(found) * 8 < len(docs):
            at = np.minimum(np.searchsorted(docs, found), len(docs) - 1)
            has = docs[at] == found
            docs, ratios = found[has], ratios[at[has]]
        docs = docs.astype(np.intp)
        total[docs] += weight - weight / ratios

    def _ranked(self, found, scores):
        """The best documents by score, then by name."""
        if len(found) > HITS:
            best = scores >= np.partition(scores, -HITS)[-HITS]
            found, scores = found[best], scores[best]
        ranked = sorted(zip((-scores).tolist(), self.asins[found].tolist(), found.tolist()))
        return tuple(doc for _, _, doc in ranked[:HITS])


def _mapped(folder, name):
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def _raise(floor, totals):
    """What a hit needs at least, now that one more term's documents have these totals (they only grow)."""
    better = totals[totals > floor]
    return np.partition(better, -HITS)[-HITS] if len(better) >= HITS else floor


def _near(totals, floor, left):
    """Which documents may still be among the hits."""
    return totals > max(0.0, (floor - left) * (1 - 1e-6))  # float32 will round
