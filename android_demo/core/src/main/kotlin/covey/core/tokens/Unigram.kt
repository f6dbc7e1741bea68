package covey.core.tokens

import covey.core.BundleException

/**
 * The likeliest way to cut a piece (Kudo 2018): each token has a log probability, and Viterbi finds the cut with the
 * largest sum. A character without a token costs ten nats more than the unlikeliest one, and neighbours of that kind are one.
 */
internal class Unigram private constructor(
    tokens: List<String>, private val scores: DoubleArray, private val unknown: Int?, private val byteFallback: Boolean,
) : Model {
    private val ids = HashMap<String, Int>(2 * tokens.size).also { for (i in tokens.indices) it[tokens[i]] = i }
    private val unlikely = (scores.minOrNull() ?: 0.0) - 10.0
    private val trie = PairTable(4 * tokens.size) // (node, character) -> node
    private val ends: IntArray // of a node: the token that ends there, or -1

    init {
        val last = HashMap<Int, Int>()
        var count = 1
        tokens.forEachIndexed { id, token ->
            var node = 0
            for (c in token) {
                if (trie[node, c.code] < 0) trie[node, c.code] = (count++).toLong()
                node = trie[node, c.code].toInt()
            }
            last[node] = id
        }
        ends = IntArray(count) { last[it] ?: -1 }
    }

    /** The id of a token. */
    fun id(token: String): Int? = ids[token]

    override fun tokens(piece: String, out: Ints) {
        for (word in fused(piece, path(piece))) {
            val id = ids[word]
            val bytes = if (id == null && byteFallback) byteTokens(word, ids::get) else null
            if (bytes != null) out.addAll(bytes) else out.add(id ?: unknownId())
        }
    }

    private fun unknownId(): Int = unknown ?: throw BundleException("the text holds a character that the model's tokenizer does not know and has no token for")

    /** The best way: for each end of a token on it, where the token starts and which it is. */
    private fun path(piece: String): List<IntArray> {
        val score = DoubleArray(piece.length + 1)
        val start = IntArray(piece.length + 1) { -1 }
        val token = IntArray(piece.length + 1)
        fun offer(from: Int, to: Int, id: Int, cost: Double) {
            if (start[to] >= 0 && score[from] + cost <= score[to]) return
            score[to] = score[from] + cost
            start[to] = from
            token[to] = id
        }
        var at = 0
        while (at < piece.length) {
            val width = Character.charCount(piece.codePointAt(at))
            var single = false
            var node = 0
            var to = at
            while (to < piece.length) {
                val next = trie[node, piece[to].code]
                if (next < 0) break
                node = next.toInt()
                to++
                if (ends[node] < 0) continue
                offer(at, to, ends[node], scores[ends[node]])
                single = single || to - at == width
            }
            if (!single) offer(at, at + width, unknown ?: UNKNOWN, unlikely)
            at += width
        }
        return generateSequence(piece.length) { start[it] }.takeWhile { it > 0 }.map { intArrayOf(start[it], it, token[it]) }.toList().asReversed()
    }

    /** The words of a path, neighbouring unknown ones as one. */
    private fun fused(piece: String, path: List<IntArray>): List<String> {
        val out = ArrayList<String>(path.size)
        var open = false
        for ((from, to, id) in path) {
            val word = piece.substring(from, to)
            val known = unknown == null || id != unknown
            if (!known && open) out[out.size - 1] += word else out += word
            open = !known
        }
        return out
    }

    companion object {
        private const val UNKNOWN = -2

        /** The model in a file. */
        fun of(part: Component): Unigram {
            val rows = part.list("vocab").map { row -> (row as? List<*>)?.takeIf { it.size == 2 } ?: part.damaged("vocab") }
            val tokens = rows.map { it[0] as? String ?: part.damaged("vocab") }
            val scores = DoubleArray(rows.size) { (rows[it][1] as? Number)?.toDouble() ?: part.damaged("vocab") }
            val unknown = part.wholeOrNull("unk_id")
            if (unknown != null && unknown >= tokens.size) part.damaged("unk_id")
            return Unigram(tokens, scores, unknown, part.flag("byte_fallback", false))
        }
    }
}
