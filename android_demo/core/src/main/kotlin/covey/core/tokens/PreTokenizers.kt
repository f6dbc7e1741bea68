package covey.core.tokens

import java.util.regex.Pattern

/** A piece of a text; [first]: it begins where the text does. */
internal class Piece(val text: String, val first: Boolean)

/** Cuts a piece into smaller ones. */
internal typealias PreTokenizer = (Piece) -> List<Piece>

/** The pre-tokenizer that a file describes; refuses one that is not known here. */
internal fun preTokenizerOf(part: Component): PreTokenizer = when (part.type) {
    "Sequence" -> part.components("pretokenizers").map(::preTokenizerOf)
        .let { all -> { piece -> all.fold(listOf(piece)) { pieces, cut -> pieces.flatMap(cut) } } }
    "BertPreTokenizer" -> { piece -> cut(piece, Behavior.REMOVED, ::isSpace).flatMap { cut(it, Behavior.ISOLATED, CodePoints.PUNCTUATION::contains) } }
    "ByteLevel" -> byteLevel(part)
    "Whitespace" -> { piece -> pieces(piece, spans(WORDS, piece.text).map { it.inverse() }, Behavior.REMOVED) }
    "WhitespaceSplit" -> { piece -> cut(piece, Behavior.REMOVED, ::isSpace) }
    "Punctuation" -> Behavior.of(part).let { how -> { piece -> cut(piece, how, CodePoints.PUNCTUATION::contains) } }
    "Digits" -> (if (part.flag("individual_digits", false)) Behavior.ISOLATED else Behavior.CONTIGUOUS)
        .let { how -> { piece -> cut(piece, how, ::isNumeric) } }
    "CharDelimiterSplit" -> part.text("delimiter").ifEmpty { part.damaged("delimiter") }.codePointAt(0).let { sign -> { piece -> cut(piece, Behavior.REMOVED) { it == sign } } }
    "Metaspace" -> metaspace(part)
    "Split" -> split(part)
    else -> part.unsupported()
}

/** What becomes of the parts that match. */
internal enum class Behavior {
    REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS;

    companion object {
        private val NAMES = mapOf(
            "Removed" to REMOVED, "Isolated" to ISOLATED, "MergedWithPrevious" to MERGED_WITH_PREVIOUS,
            "MergedWithNext" to MERGED_WITH_NEXT, "Contiguous" to CONTIGUOUS,
        )

        fun of(part: Component): Behavior = NAMES[part.textOrNull("behavior") ?: "Isolated"] ?: part.unsupported("${part.type}, ${part.text("behavior")}")
    }
}

/** A stretch of a text that matches a pattern, or lies between two that do. */
internal class Span(val from: Int, val to: Int, val match: Boolean) {
    fun inverse() = Span(from, to, !match)
}

private val WORDS: Pattern = Pattern.compile("[$WORD_CHARACTERS\\u200c\\u200d]+|[^$WORD_CHARACTERS\\u200c\\u200d\\s\\u0085\\p{Z}]+")

private fun isSpace(point: Int) = point in CodePoints.SPACE

private fun isNumeric(point: Int): Boolean = when (Character.getType(point).toByte()) {
    Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
    else -> false
}

private fun split(part: Component): PreTokenizer {
    val pattern = part.pattern("pattern")
    val how = Behavior.of(part)
    val inverted = part.flag("invert", false)
    return { piece -> pieces(piece, spans(pattern, piece.text).map { if (inverted) it.inverse() else it }, how) }
}

private val GPT2 = Pattern.compile(
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\u0085\\p{Z}\\p{L}\\p{N}]+|[\\s\\u0085\\p{Z}]+(?![^\\s\\u0085\\p{Z}])|[\\s\\u0085\\p{Z}]+",
)

private fun byteLevel(part: Component): PreTokenizer {
    val prefixed = part.flag("add_prefix_space", true)
    val cut = part.flag("use_regex", true)
    return { piece ->
        val text = if (prefixed && !piece.text.startsWith(" ")) " ${piece.text}" else piece.text
        val words = if (cut) pieces(Piece(text, piece.first), spans(GPT2, text), Behavior.ISOLATED) else listOf(Piece(text, piece.first))
        words.map { Piece(bytesAsCharacters(it.text), it.first) }
    }
}

private fun metaspace(part: Component): PreTokenizer {
    val sign = part.text("replacement")
    val scheme = if (part.flag("add_prefix_space", true)) part.textOrNull("prepend_scheme") ?: "always" else "never"
    if (scheme !in setOf("always", "first", "never")) part.unsupported("${part.type} with prepend_scheme $scheme")
    val cut = part.flag("split", true)
    val pattern = Pattern.compile(sign, Pattern.LITERAL)
    return { piece ->
        val bare = piece.text.replace(" ", sign)
        val wanted = scheme == "always" || scheme == "first" && piece.first
        val text = Piece(if (wanted && !bare.startsWith(sign)) sign + bare else bare, piece.first)
        if (cut) pieces(text, spans(pattern, text.text), Behavior.MERGED_WITH_NEXT) else listOf(text)
    }
}

/** All of a text as spans, matches and what is between them. */
internal fun spans(pattern: Pattern, text: String): List<Span> {
    val out = ArrayList<Span>()
    val match = pattern.matcher(text)
    var at = 0
    while (match.find()) {
        if (match.start() > at) out += Span(at, match.start(), false)
        if (match.end() > match.start()) out += Span(match.start(), match.end(), true)
        at = match.end()
    }
    if (at < text.length) out += Span(at, text.length, false)
    return out
}

/** Each code point that [matches] is a span of its own. */
private inline fun cut(piece: Piece, how: Behavior, matches: (Int) -> Boolean): List<Piece> {
    val spans = ArrayList<Span>()
    var at = 0
    var from = 0
    while (at < piece.text.length) {
        val point = piece.text.codePointAt(at)
        val next = at + Character.charCount(point)
        if (matches(point)) {
            if (from < at) spans += Span(from, at, false)
            spans += Span(at, next, true)
            from = next
        }
        at = next
    }
    if (from < at) spans += Span(from, at, false)
    return pieces(piece, spans, how)
}

/** The spans as pieces, as [how] says. */
internal fun pieces(piece: Piece, spans: List<Span>, how: Behavior): List<Piece> = when (how) {
    Behavior.REMOVED -> spans.filterNot { it.match }
    Behavior.ISOLATED -> spans
    Behavior.CONTIGUOUS -> joined(spans) { before, span -> before.match == span.match }
    Behavior.MERGED_WITH_PREVIOUS -> joined(spans) { before, span -> span.match && !before.match }
    Behavior.MERGED_WITH_NEXT -> joined(spans) { before, span -> before.match && !span.match }
}.map { Piece(piece.text.substring(it.from, it.to), piece.first && it.from == 0) }

/** Neighbours for which [together] says so become one span. */
private inline fun joined(spans: List<Span>, together: (Span, Span) -> Boolean): List<Span> {
    val out = ArrayList<Span>()
    for (i in spans.indices) {
        val last = out.lastOrNull()
        if (last != null && together(spans[i - 1], spans[i])) out[out.size - 1] = Span(last.from, spans[i].to, spans[i].match) else out += spans[i]
    }
    return out
}
