package covey.core.tokens

import covey.core.BundleException
import covey.core.Reason
import covey.core.because

/** One component of a `tokenizer.json`: [role] is where it stands, `normalizer` say, and [fields] what it holds. */
internal class Component(val role: String, private val fields: Map<*, *>) {
    /** What it is. */
    val type: String get() = text("type")

    fun text(name: String): String = fields[name] as? String ?: damaged(name)
    fun textOrNull(name: String): String? = fields[name]?.let { it as? String ?: damaged(name) }
    fun flag(name: String, otherwise: Boolean): Boolean = fields[name]?.let { it as? Boolean ?: damaged(name) } ?: otherwise
    fun flagOrNull(name: String): Boolean? = fields[name]?.let { it as? Boolean ?: damaged(name) }
    fun list(name: String): List<*> = fields[name] as? List<*> ?: damaged(name)
    fun map(name: String): Map<*, *> = fields[name] as? Map<*, *> ?: damaged(name)
    fun has(name: String): Boolean = fields[name] != null
    fun number(name: String): Double = fields[name]?.let { (it as? Number)?.toDouble() ?: damaged(name) } ?: 0.0
    fun wholeOrNull(name: String): Int? = fields[name]?.let { whole(it) ?: damaged(name) }
    fun whole(name: String): Int = wholeOrNull(name) ?: damaged(name)
    fun components(name: String): List<Component> = list(name).map { Component(role, it as? Map<*, *> ?: damaged(name)) }

    /** Tokens and their ids. */
    fun vocabulary(name: String): Map<String, Int> {
        val raw = map(name)
        val out = HashMap<String, Int>(2 * raw.size)
        for ((token, id) in raw) out[token as String] = whole(id) ?: damaged(name)
        return out
    }

    /** `String` or `Regex`, as patterns stand in these files. */
    fun pattern(name: String): java.util.regex.Pattern {
        val raw = Component(role, map(name))
        return raw.textOrNull("String")?.let { java.util.regex.Pattern.compile(it, java.util.regex.Pattern.LITERAL) }
            ?: javaPattern(raw.text("Regex"), this)
    }

    /** Refuses what this client does not know, by name. */
    fun unsupported(what: String = type): Nothing = throw BundleException(
        "the model's tokenizer has the $role $what, which this app does not know: serve a model with another tokenizer, " +
            "or give the app a Coder for this one",
    ).because(Reason.TOKENIZER, "$role $what")

    /** Refuses what is no tokenizer. */
    fun damaged(name: String): Nothing = throw BundleException("the model's tokenizer is damaged: '$name' of its $role does not hold what it should")

    companion object {
        /** A number that can be an id. */
        fun whole(json: Any?): Int? = (json as? Long)?.takeIf { it in 0..Int.MAX_VALUE }?.toInt()
    }
}

/** Ids that grow. */
internal class Ints {
    private var items = IntArray(64)

    /** How many there are. */
    var size = 0
        private set

    operator fun get(at: Int): Int = items[at]

    fun add(item: Int) {
        if (size == items.size) items = items.copyOf(2 * size)
        items[size++] = item
    }

    fun addAll(more: IntArray) {
        while (size + more.size > items.size) items = items.copyOf(2 * items.size)
        more.copyInto(items, size)
        size += more.size
    }

    fun toArray(): IntArray = items.copyOf(size)
}

/** A table from pairs of numbers to one of 63 bits, without a box for each entry: vocabularies have 300,000 of them. */
internal class PairTable(expected: Int) {
    private var keys = LongArray(maxOf(16, Integer.highestOneBit(maxOf(1, expected)) * 4)) { EMPTY }
    private var values = LongArray(keys.size)
    private var count = 0

    /** What the pair leads to, or -1. */
    operator fun get(a: Int, b: Int): Long {
        val at = slot(key(a, b))
        return if (keys[at] == EMPTY) -1 else values[at]
    }

    operator fun set(a: Int, b: Int, value: Long) {
        if (2 * count >= keys.size) grow()
        val at = slot(key(a, b))
        if (keys[at] == EMPTY) count++
        keys[at] = key(a, b)
        values[at] = value
    }

    private fun key(a: Int, b: Int): Long = (a.toLong() shl 32) or b.toLong()

    private fun slot(key: Long): Int {
        val mixed = key * -0x61c8864680b583ebL // Fibonacci hashing
        var at = (mixed ushr 32).toInt() and (keys.size - 1)
        while (keys[at] != EMPTY && keys[at] != key) at = (at + 1) and (keys.size - 1)
        return at
    }

    private fun grow() {
        val (oldKeys, oldValues) = keys to values
        keys = LongArray(2 * oldKeys.size) { EMPTY }
        values = LongArray(keys.size)
        for (i in oldKeys.indices) {
            if (oldKeys[i] == EMPTY) continue
            val at = slot(oldKeys[i])
            keys[at] = oldKeys[i]
            values[at] = oldValues[i]
        }
    }

    private companion object {
        const val EMPTY = -1L // no pair of ids, which are not negative
    }
}
