package covey.core.tokens

import java.text.Normalizer.Form
import java.util.regex.Pattern

/** Changes a text before it is cut. */
internal typealias Normalizer = (String) -> String

/** The normalizer that a file describes; refuses one that is not known here. */
internal fun normalizerOf(part: Component): Normalizer = when (part.type) {
    "Sequence" -> part.components("normalizers").map(::normalizerOf).let { all -> { text -> all.fold(text) { t, step -> step(t) } } }
    "BertNormalizer" -> bert(part)
    "NFC", "NFD", "NFKC", "NFKD" -> Form.valueOf(part.type).let { form -> { text -> java.text.Normalizer.normalize(text, form) } }
    "Lowercase" -> ::lowercase
    "Strip" -> strip(part.flag("strip_left", true), part.flag("strip_right", true))
    "StripAccents" -> { text -> replacePoints(text) { if (isMark(it)) "" else null } }
    "Prepend" -> part.text("prepend").let { more -> { text -> if (text.isEmpty()) text else more + text } }
    "Replace" -> replace(part.pattern("pattern"), part.text("content"))
    "Nmt" -> { text -> replacePoints(text, ::nmt) }
    "Precompiled" -> CharsMap.of(part)::apply
    "ByteLevel" -> ::bytesAsCharacters
    else -> part.unsupported()
}

private fun bert(part: Component): Normalizer {
    val lower = part.flag("lowercase", true)
    val accents = part.flagOrNull("strip_accents") ?: lower
    val clean = part.flag("clean_text", true)
    val signs = part.flag("handle_chinese_chars", true)
    return { text ->
        var t = text
        if (clean) t = replacePoints(t, ::cleaned)
        if (signs) t = replacePoints(t) { if (it in CodePoints.CJK) " ${string(it)} " else null }
        if (accents) t = replacePoints(java.text.Normalizer.normalize(t, Form.NFD)) { if (it in CodePoints.MARKS) "" else null }
        if (lower) t = lowercase(t)
        t
    }
}

private fun cleaned(point: Int): String? = when {
    point == '\t'.code || point == '\n'.code || point == '\r'.code -> " "
    point in CodePoints.REMOVED -> ""
    point in CodePoints.SPACE -> " "
    else -> null
}

/** Sign by sign, without a look at the neighbours: a sigma at a word's end is one as in its middle. */
internal fun lowercase(text: String): String = replacePoints(text) { point ->
    val lower = Character.toLowerCase(point)
    if (point == 0x130) "i\u0307" else if (lower == point) null else string(lower)
}

private fun isMark(point: Int): Boolean = when (Character.getType(point).toByte()) {
    Character.NON_SPACING_MARK, Character.COMBINING_SPACING_MARK, Character.ENCLOSING_MARK -> true
    else -> false
}

/** The rules of Google's neural machine translation, as SentencePiece has them. */
private fun nmt(point: Int): String? = when (point) {
    in 1..8, 0xb, in 0xe..0x1f, 0x7f, 0x8f, 0x9f -> ""
    9, 0xa, 0xc, 0xd, 0x1680, in 0x200b..0x200f, 0x2028, 0x2029, 0x2581, 0xfeff, 0xfffd -> " "
    else -> null
}

private fun strip(left: Boolean, right: Boolean): Normalizer = { text ->
    var from = 0
    var to = text.length
    if (left) while (from < to && text[from].code in CodePoints.SPACE) from++
    if (right) while (from < to && text[to - 1].code in CodePoints.SPACE) to--
    text.substring(from, to)
}

private fun replace(pattern: Pattern, content: String): Normalizer = { text ->
    val match = pattern.matcher(text)
    val out = StringBuilder(text.length)
    var at = 0
    while (match.find()) {
        out.append(text, at, match.start()).append(if (match.end() > match.start()) content else "")
        at = match.end()
    }
    if (at == 0) text else out.append(text, at, text.length).toString()
}

/** The text with some code points replaced; null leaves one as it is. */
internal inline fun replacePoints(text: String, change: (Int) -> String?): String {
    var out: StringBuilder? = null
    var at = 0
    while (at < text.length) {
        val point = text.codePointAt(at)
        val to = change(point)
        if (to != null && out == null) out = StringBuilder(text.length + 16).append(text, 0, at)
        if (out != null) if (to == null) out.appendCodePoint(point) else out.append(to)
        at += Character.charCount(point)
    }
    return out?.toString() ?: text
}

internal fun string(point: Int): String = String(Character.toChars(point))

/** Every byte of UTF-8 as a character that can be seen, as GPT-2 has it (Radford et al. 2019). */
internal fun bytesAsCharacters(text: String): String {
    val bytes = text.toByteArray()
    val out = CharArray(bytes.size) { BYTE_CHARACTERS[bytes[it].toInt() and 0xff] }
    return String(out)
}

private val BYTE_CHARACTERS: CharArray = run {
    val seen = ('!'..'~') + ('\u00a1'..'\u00ac') + ('\u00ae'..'\u00ff')
    var next = 256
    CharArray(256) { byte -> if (byte.toChar() in seen) byte.toChar() else (next++).toChar() }
}
