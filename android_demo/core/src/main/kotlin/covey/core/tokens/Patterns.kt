package covey.core.tokens

import java.util.regex.Pattern
import java.util.regex.PatternSyntaxException

/**
 * A regular expression of a `tokenizer.json`, which is Oniguruma's (in Ruby's syntax, over Unicode), as one of Java's. What
 * the two read alike is kept, classes that Java has over ASCII alone are written out, and what they read differently is
 * refused. Of the letters and numbers that `\p{L}` and `\p{N}` mean, each platform knows those of its own Unicode.
 */
internal fun javaPattern(expression: String, part: Component): Pattern {
    val java = try {
        Translation(expression).whole()
    } catch (_: Untranslatable) {
        part.unsupported("${part.type} with the expression ${expression.take(80)}")
    }
    return try {
        Pattern.compile(java, Pattern.MULTILINE or Pattern.UNIX_LINES or Pattern.UNICODE_CASE)
    } catch (_: PatternSyntaxException) {
        part.unsupported("${part.type} with the expression ${expression.take(80)}")
    }
}

private class Untranslatable : Exception()

private class Translation(private val from: String) {
    private val out = StringBuilder()
    private var at = 0
    private var depth = 0 // of classes within each other

    fun whole(): String {
        while (at < from.length) one()
        return out.toString()
    }

    private fun one() {
        when (val c = from[at++]) {
            '\\' -> escape()
            '[' -> open()
            ']' -> { depth = maxOf(0, depth - 1); out.append(c) }
            '(' -> { if (depth == 0) group(); out.append(c) }
            '}' -> { if (depth == 0 && peek('+')) fail(); out.append(c) } // possessive in Java, a repetition in Ruby
            '.' -> out.append(if (depth == 0) "[^\\n]" else ".")
            '#', ' ' -> out.append('\\').append(c)
            else -> out.append(c)
        }
    }

    private fun open() {
        if (peek(':') || peek(']') || from.startsWith("^]", at)) fail()
        depth++
        out.append('[')
    }

    private fun group() {
        if (peek('?') && GROUPS.none { from.startsWith(it, at + 1) }) fail()
    }

    private fun escape() {
        if (at == from.length) fail()
        when (val c = from[at++]) {
            's' -> set(SPACE)
            'S' -> out.append("[^$SPACE]")
            'w' -> set(WORD)
            'W' -> out.append("[^$WORD]")
            'd' -> out.append("\\p{Nd}")
            'D' -> out.append("\\P{Nd}")
            'p', 'P' -> property(c == 'P')
            'v' -> out.append("\\x0b")
            'n', 'r', 't', 'f', 'u', 'x' -> out.append('\\').append(c)
            else -> { if (c.isLetterOrDigit()) fail(); out.append('\\').append(c) }
        }
    }

    private fun set(members: String) { out.append(if (depth > 0) members else "[$members]") }

    private fun property(negated: Boolean) {
        val end = from.indexOf('}', at)
        if (!peek('{') || end < 0) fail()
        val name = from.substring(at + 1, end).removePrefix("^")
        val inverse = negated != from.startsWith("^", at + 1)
        at = end + 1
        if (!NAME.matches(name)) fail()
        out.append(if (inverse) "\\P" else "\\p").append(if (name.length <= 2) "{$name}" else "{script=$name}")
    }

    private fun peek(c: Char) = from.getOrNull(at) == c
    private fun fail(): Nothing = throw Untranslatable()

    private companion object {
        const val SPACE = "\\t-\\r\\u0020\\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
        const val WORD = "$WORD_CHARACTERS\\u00b2\\u00b3\\u00b9\\u00bc-\\u00be" // Oniguruma counts these of Latin-1
        val GROUPS = listOf(":", "=", "!", "<=", "<!", ">", "i:", "i)", "-i:")
        val NAME = Regex("[A-Z][A-Za-z_]*")
    }
}

/** Letters, marks, digits and connectors, as members of a class. */
internal const val WORD_CHARACTERS = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\u24b6-\\u24e9\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
