package covey.core.tokens

/** A token that a file names by itself, special ones above all: found in a text before anything else is done with it. */
internal data class AddedToken(
    val id: Int, val content: String, val singleWord: Boolean, val lstrip: Boolean, val rstrip: Boolean, val normalized: Boolean,
)

/** A token that was found, or the [text] between two. */
internal class Segment(val text: String, val id: Int = -1, val first: Boolean)

/** Finds added tokens: the leftmost first, of those the longest. */
internal class AddedTokens(tokens: List<AddedToken>) {
    private val byStart: Map<Char, List<AddedToken>> =
        tokens.filter { it.content.isNotEmpty() }.groupBy { it.content[0] }.mapValues { (_, all) -> all.sortedByDescending { it.content.length } }

    /** The text cut at the tokens in it. */
    fun split(text: String, first: Boolean): List<Segment> {
        if (byStart.isEmpty()) return listOf(Segment(text, first = first))
        val out = ArrayList<Segment>()
        var done = 0
        var at = 0
        while (at < text.length) {
            val token = byStart[text[at]]?.firstOrNull { text.startsWith(it.content, at) }
            if (token == null) { at++; continue }
            val end = at + token.content.length
            if (!token.singleWord || alone(text, at, end)) {
                val from = if (token.lstrip) maxOf(done, spacesBefore(text, at)) else at
                val to = if (token.rstrip) spacesAfter(text, end) else end
                if (done < from) out += Segment(text.substring(done, from), first = first && done == 0)
                out += Segment("", token.id, false)
                done = to
            }
            at = end
        }
        if (done < text.length) out += Segment(text.substring(done), first = first && done == 0)
        return out
    }

    private fun alone(text: String, from: Int, to: Int): Boolean =
        (from == 0 || !isWord(text.codePointBefore(from))) && (to == text.length || !isWord(text.codePointAt(to)))

    private fun isWord(point: Int) = WORD.matcher(string(point)).matches()

    private fun spacesBefore(text: String, at: Int): Int {
        var from = at
        while (from > 0 && text[from - 1].code in CodePoints.SPACE) from--
        return from
    }

    private fun spacesAfter(text: String, at: Int): Int {
        var to = at
        while (to < text.length && text[to].code in CodePoints.SPACE) to++
        return to
    }

    private companion object {
        val WORD: java.util.regex.Pattern = java.util.regex.Pattern.compile("[$WORD_CHARACTERS\\u200c\\u200d]")
    }
}
