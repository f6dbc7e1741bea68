package covey.core.tokens

/**
 * Byte-pair encoding (Sennrich et al. 2016): of a piece's characters the pair with the lowest rank is merged, the leftmost
 * first, until no pair has one. `byte_fallback` spells unknown characters as bytes.
 */
internal class Bpe private constructor(
    private val vocabulary: Map<String, Int>,
    private val merges: PairTable,
    private val unknown: Int?,
    private val fuseUnknown: Boolean,
    private val byteFallback: Boolean,
    private val wholeFirst: Boolean,
    private val prefix: String,
    private val suffix: String,
) : Model {
    private val cache = HashMap<String, IntArray>()
    private val cuttable = !wholeFirst && prefix.isEmpty() && suffix.isEmpty() && (byteFallback || unknown != null) && SPACE in vocabulary &&
        vocabulary.keys.none { token -> token.indices.any { it > 0 && token[it] == SPACE[0] && token[it - 1] != SPACE[0] } }

    /** The id of a token. */
    fun id(token: String): Int? = vocabulary[token]

    override fun tokens(piece: String, out: Ints) {
        if (!cuttable) return out.addAll(cached(piece))
        // Where no token goes on past the beginning of a word, words are merged alone: the same ids, and a document that
        // comes as one piece, as with Llama 2, does not have to be merged as a whole.
        var from = 0
        for (at in 1..piece.length) {
            if (at < piece.length && (piece[at] != SPACE[0] || piece[at - 1] == SPACE[0])) continue
            out.addAll(cached(piece.substring(from, at)))
            from = at
        }
    }

    private fun cached(word: String): IntArray {
        cache[word]?.let { return it }
        val ids = (if (wholeFirst) vocabulary[word]?.let { intArrayOf(it) } else null) ?: merged(symbols(word))
        if (word.length <= MAX_CACHED_LENGTH && cache.size < MAX_CACHED) cache[word] = ids
        return ids
    }

    private fun symbols(word: String): IntArray {
        val out = Ints()
        var waiting = false // an unknown character that the next may be fused with
        var at = 0
        while (at < word.length) {
            val end = at + Character.charCount(word.codePointAt(at))
            val symbol = (if (at > 0) prefix else "") + word.substring(at, end) + if (end == word.length) suffix else ""
            at = end
            val id = vocabulary[symbol]
            val bytes = if (id == null && byteFallback) byteTokens(symbol, vocabulary::get) else null
            if (id != null) {
                if (waiting) out.add(unknown!!)
                waiting = false
                out.add(id)
            } else if (bytes != null) {
                out.addAll(bytes)
            } else if (unknown != null) {
                if (waiting && !fuseUnknown) out.add(unknown)
                waiting = true
            }
        }
        if (waiting) out.add(unknown!!)
        return out.toArray()
    }

    /** Merges with a heap of candidates, each a rank and a place; those that time has overtaken are passed over. */
    private fun merged(ids: IntArray): IntArray {
        if (ids.size < 2) return ids
        val next = IntArray(ids.size) { it + 1 }
        val before = IntArray(ids.size) { it - 1 }
        val heap = LongHeap()
        fun offer(at: Int) {
            if (at < 0 || next[at] >= ids.size) return
            val merge = merges[ids[at], ids[next[at]]]
            if (merge >= 0) heap.add((merge ushr 32 shl 32) or at.toLong())
        }
        for (at in 0 until ids.size - 1) offer(at)
        while (true) {
            val best = heap.poll()
            if (best < 0) break
            val at = best.toInt()
            if (ids[at] == GONE || next[at] >= ids.size) continue
            val merge = merges[ids[at], ids[next[at]]]
            if (merge < 0 || merge ushr 32 != best ushr 32) continue
            val gone = next[at]
            ids[at] = merge.toInt()
            ids[gone] = GONE
            next[at] = next[gone]
            if (next[at] < ids.size) before[next[at]] = at
            offer(before[at])
            offer(at)
        }
        return ids.filter { it != GONE }.toIntArray()
    }

    companion object {
        private const val SPACE = "\u2581" // SentencePiece's
        private const val GONE = -1
        private const val MAX_CACHED = 10_000
        private const val MAX_CACHED_LENGTH = 256

        /** The model in a file. */
        fun of(part: Component): Bpe {
            if (part.number("dropout") != 0.0) part.unsupported("BPE with dropout, which draws its tokens")
            val vocabulary = part.vocabulary("vocab")
            val prefix = part.textOrNull("continuing_subword_prefix").orEmpty()
            return Bpe(
                vocabulary, merges(part, vocabulary, prefix.length),
                part.textOrNull("unk_token")?.let { vocabulary[it] ?: part.unsupported("BPE without its own unknown token in the vocabulary") },
                part.flag("fuse_unk", false), part.flag("byte_fallback", false), part.flag("ignore_merges", false), prefix,
                part.textOrNull("end_of_word_suffix").orEmpty(),
            )
        }

        private fun merges(part: Component, vocabulary: Map<String, Int>, prefix: Int): PairTable {
            val list = part.list("merges")
            val out = PairTable(list.size)
            list.forEachIndexed { rank, item ->
                val halves = (item as? String)?.split(' ') ?: (item as? List<*>)?.map { it as? String ?: part.damaged("merges") }
                if (halves?.size != 2) part.damaged("merges")
                val (a, b) = halves
                val ids = listOf(a, b, a + b.drop(prefix)).map { vocabulary[it] ?: part.damaged("merges") }
                out[ids[0], ids[1]] = (rank.toLong() shl 32) or ids[2].toLong()
            }
            return out
        }
    }
}

/** The smallest first; Java's own would box every number. */
private class LongHeap {
    private var items = LongArray(32)
    private var size = 0

    fun add(item: Long) {
        if (size == items.size) items = items.copyOf(2 * size)
        var at = size++
        while (at > 0 && items[(at - 1) / 2] > item) {
            items[at] = items[(at - 1) / 2]
            at = (at - 1) / 2
        }
        items[at] = item
    }

    /** The smallest, taken out; -1 where there is none. */
    fun poll(): Long {
        if (size == 0) return -1
        val smallest = items[0]
        val last = items[--size]
        var at = 0
        while (true) {
            var child = 2 * at + 1
            if (child >= size) break
            if (child + 1 < size && items[child + 1] < items[child]) child++
            if (items[child] >= last) break
            items[at] = items[child]
            at = child
        }
        items[at] = last
        return smallest
    }
}
