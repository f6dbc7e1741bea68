package covey.core.model

import covey.core.BundleException

/**
 * A small JSON reader for the bundle's manifest: Android's own parser is not there on the JVM, and :core has no
 * dependency. Values are Map, List, String, Boolean, Long, Double and null. Nesting is bounded, a key may not come twice.
 */
object Json {
    private const val MAX_DEPTH = 32

    /** The value of a whole text; throws [BundleException] for what is not JSON. */
    fun parse(text: String): Any? = Reader(text).whole()

    private class Reader(private val text: String) {
        private var at = 0

        fun whole(): Any? {
            val value = value(0)
            space()
            if (at < text.length) invalid("something follows the value")
            return value
        }

        private fun value(depth: Int): Any? {
            if (depth > MAX_DEPTH) invalid("it is nested too deeply")
            space()
            return when (val c = peek()) {
                '{' -> map(depth)
                '[' -> list(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> if (c == '-' || c in '0'..'9') number() else invalid("unexpected '$c'")
            }
        }

        private fun map(depth: Int): Map<String, Any?> {
            val out = LinkedHashMap<String, Any?>()
            items('{', '}') {
                space()
                val key = string()
                space()
                expect(':')
                if (key in out) invalid("the key '${key.take(40)}' comes twice")
                out[key] = value(depth + 1)
            }
            return out
        }

        private fun list(depth: Int): List<Any?> = ArrayList<Any?>().also { out -> items('[', ']') { out += value(depth + 1) } }

        private inline fun items(open: Char, close: Char, item: () -> Unit) {
            expect(open)
            space()
            if (peek() == close) { at++; return }
            while (true) {
                item()
                space()
                if (peek() == close) { at++; return }
                expect(',')
            }
        }

        private fun string(): String {
            expect('"')
            val out = StringBuilder()
            while (true) {
                when (val c = next()) {
                    '"' -> return out.toString()
                    '\\' -> out.append(escape(next()))
                    else -> if (c < ' ') invalid("a control character in a string") else out.append(c)
                }
            }
        }

        private fun escape(c: Char): Char = when (c) {
            '"', '\\', '/' -> c
            'b' -> '\b'
            'f' -> '\u000c'
            'n' -> '\n'
            'r' -> '\r'
            't' -> '\t'
            'u' -> (1..4).fold(0) { code, _ ->
                val digit = Character.digit(next(), 16)
                if (digit < 0) invalid("a bad \\u escape")
                code * 16 + digit
            }.toChar()
            else -> invalid("an unknown escape")
        }

        private fun number(): Any {
            val from = at
            while (at < text.length && text[at] in "+-.eE0123456789") at++
            val token = text.substring(from, at)
            if (!NUMBER.matches(token)) invalid("'${token.take(20)}' is no number")
            val real = token.toDouble()
            if (!real.isFinite()) invalid("a number beyond all bounds")
            return if (token.all { it == '-' || it in '0'..'9' }) token.toLongOrNull() ?: real else real
        }

        private fun <T> word(word: String, value: T): T {
            if (!text.startsWith(word, at)) invalid("an unknown word")
            at += word.length
            return value
        }

        private fun space() { while (at < text.length && text[at] in " \t\r\n") at++ }
        private fun peek(): Char = if (at < text.length) text[at] else invalid("it ends early")
        private fun next(): Char = peek().also { at++ }
        private fun expect(c: Char) { if (next() != c) invalid("'$c' is missing") }
        private fun invalid(why: String): Nothing = throw BundleException("not JSON: $why, near character $at")
    }

    private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")
}
