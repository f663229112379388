"""WebShop's search: Lucene's BM25 over numpy arrays, without Lucene.

The same hits in the same order as the benchmark's index (Anserini 0.14.3, Lucene 8): all 50 of 1,200
queries on the 1,000-product set, word for word the same terms in every document. The index is made in memory
when a process starts, in half a second for those products. Left out: what would make it quick for the full
catalogue of 1.18 million.

    Index(["red shoes", "blue shoes"], ["A", "B"]).search("red shoe") -> (0, 1)
"""

import heapq
import math
import re
from collections import Counter, defaultdict
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


# ---------------------------------------------------------------- the index

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
    mean = np.float32(max(1, sum(lengths)) / filled)
    stored = np.array([one_byte(n) for n in lengths], np.float32)
    return one / (k1 * ((one - b) + b * stored / mean))


class Index:
    """The search index of texts with names: `search(query)` -> numbers of the texts found, best first.

    Scores are Lucene's: per term boost · idf · (1 - 1 / (1 + tf · length factor)) in float32, summed in
    float64, rounded to float32; equal scores in the order of the names, Anserini's rule.
    """

    def __init__(self, texts, names):
        """texts: in document order; names: their asins."""
        self.names = names
        counts = [Counter(analyse(text)) for text in texts]
        lengths = [count.total() for count in counts]
        self.filled = np.count_nonzero(lengths)
        factors = length_factors(lengths)
        docs, often = defaultdict(list), defaultdict(list)
        for number, count in enumerate(counts):
            for term, times in count.items():
                docs[term].append(number)
                often[term].append(times)
        self.postings = {}      # term -> the documents that have it, and 1 + tf · length factor of each
        for term, numbers in docs.items():
            ratios = np.float32(1) + np.array(often[term], np.float32) * factors[numbers]
            self.postings[term] = np.array(numbers), ratios
        self.search = lru_cache(1024)(self._search)  # paging through results asks again and again

    def _search(self, query):
        gains = []              # (documents, what a term adds to each)
        for term, boost in list(Counter(analyse(query)).items())[:MAX_TERMS]:
            if term in self.postings:
                docs, ratios = self.postings[term]
                idf = math.log(1 + (self.filled - len(docs) + 0.5) / (len(docs) + 0.5))
                weight = np.float32(boost) * np.float32(idf)
                gains.append((docs, weight - weight / ratios))
        total = np.zeros(len(self.names))
        for docs, gain in sorted(gains, key=lambda pair: -pair[1].max()):  # the order decides the last bit
            total[docs] += gain
        scores = total.astype(np.float32)
        found = np.flatnonzero(total).tolist()
        return tuple(heapq.nsmallest(HITS, found, key=lambda doc: (-scores[doc], self.names[doc])))
