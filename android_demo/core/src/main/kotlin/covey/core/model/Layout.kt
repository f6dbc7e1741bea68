package covey.core.model

import covey.core.LayoutException
import java.math.BigDecimal
import java.math.MathContext
import java.util.Locale
import kotlin.math.sqrt

/**
 * One trainable tensor. [init] is `kaiming_uniform`, `zeros` or `stored` (its value lies in the bundle's start file);
 * [scale] is alpha / rank of LoRA, else 1; [rank] 0 for what is not LoRA.
 */
data class Tensor(
    val name: String,
    val shape: List<Int>,
    val kind: String,
    val init: String,
    val module: String = "",
    val rank: Int = 0,
    val scale: Double = 1.0,
) {
    init {
        val entries = shape.fold(1L) { product, d -> if (d < 1 || product > Int.MAX_VALUE) -1 else product * d }
        if (name.isEmpty() || shape.isEmpty() || entries !in 1..Int.MAX_VALUE) {
            throw LayoutException("tensor '$name' has shape $shape; it needs a name and positive dimensions")
        }
        if (kind !in KINDS) throw LayoutException("tensor '$name' has kind '$kind'; known kinds are ${KINDS.joinToString()}")
        if (init !in INITS) throw LayoutException("tensor '$name' has init '$init'; known are ${INITS.joinToString()}")
        if (rank < 0 || !scale.isFinite()) throw LayoutException("tensor '$name' has rank $rank and scale $scale")
    }

    /** Number of entries. */
    val size: Int get() = shape.fold(1) { product, d -> product * d }

    /** The first [lower] rows of a lora_A, columns of a lora_B. */
    internal fun cut(lower: Int): Tensor {
        if (rank <= lower) return this
        val along = if (kind == "lora_A") 0 else 1
        if (!kind.startsWith("lora_") || shape.size < 2 || shape[along] != rank) {
            throw LayoutException("tensor '$name' of shape $shape has no lower rank than $rank")
        }
        return copy(shape = shape.mapIndexed { i, d -> if (i == along) lower else d }, rank = lower)
    }

    /** The canonical JSON object: sorted keys, ASCII, numbers as Python writes them. */
    internal fun canonical(): String =
        "{\"init\":${quoted(init)},\"kind\":${quoted(kind)},\"module\":${quoted(module)},\"name\":${quoted(name)}," +
            "\"rank\":$rank,\"scale\":${pythonReal(scale)},\"shape\":[${shape.joinToString(",")}]}"

    companion object {
        private val KINDS = listOf("lora_A", "lora_B", "head", "norm", "block")
        private val INITS = listOf("kaiming_uniform", "zeros", "stored")
    }
}

/** Which tensors the flat adapter holds, in which order, and how it starts. */
class Layout(val tensors: List<Tensor>) {
    /** Length of the adapter vector. */
    val size: Int

    /** Where each tensor starts in the vector. */
    val offsets: IntArray

    init {
        if (tensors.isEmpty()) throw LayoutException("a layout needs at least one tensor")
        val names = tensors.map { it.name }
        names.groupingBy { it }.eachCount().entries.firstOrNull { it.value > 1 }
            ?.let { throw LayoutException("the layout names '${it.key}' twice") }
        val total = tensors.sumOf { it.size.toLong() }
        if (total > Int.MAX_VALUE) throw LayoutException("the layout has $total entries, more than the wire format holds")
        size = total.toInt()
        offsets = tensors.runningFold(0) { at, t -> at + t.size }.dropLast(1).toIntArray()
    }

    /** The text that the digest covers. */
    val canonical: String by lazy { tensors.joinToString(",", "[", "]") { it.canonical() } }

    /** SHA-256 of the canonical form. Every message that carries a vector carries it. */
    val digest: String by lazy { sha256(canonical.toByteArray()) }

    /** The first four bytes of the digest as a little-endian number: the packed formats' layout id. */
    val shortId: Int by lazy { digest.take(8).chunked(2).reversed().joinToString("").toLong(16).toInt() }

    /**
     * The layout of a lower rank: of each LoRA tensor the first [rank] rows (lora_A) or columns (lora_B). What is not
     * LoRA, and every scale, stays.
     */
    fun atRank(rank: Int): Layout {
        if (rank < 1) throw LayoutException("the rank is $rank; it must be at least 1")
        return if (tensors.all { it.rank <= rank }) this else Layout(tensors.map { it.cut(rank) })
    }

    /** Where the entries of a sub-layout stand in this one, by the names of the tensors; a smaller tensor is the first entries. */
    fun positions(sub: Layout): IntArray {
        val ours = tensors.zip(offsets.asList()).associateBy { it.first.name }
        val out = IntArray(sub.size)
        sub.tensors.forEachIndexed { i, part ->
            val (tensor, offset) = ours[part.name] ?: throw LayoutException("the layout has no tensor '${part.name}'")
            val fits = part.shape.size == tensor.shape.size && part.shape.zip(tensor.shape).all { (p, w) -> p <= w }
            if (!fits) throw LayoutException("'${part.name}' of shape ${part.shape} is no part of the layout's, of shape ${tensor.shape}")
            for (entry in 0 until part.size) out[sub.offsets[i] + entry] = offset + inside(entry, part.shape, tensor.shape)
        }
        return out
    }

    /** The number in a larger tensor of an entry of a part of it. */
    private fun inside(entry: Int, part: List<Int>, whole: List<Int>): Int {
        var rest = entry
        var at = 0
        var stride = 1
        for (dimension in part.indices.reversed()) {
            at += rest % part[dimension] * stride
            rest /= part[dimension]
            stride *= whole[dimension]
        }
        return at
    }

    /** Entries whose start lies in the bundle. */
    val storedSize: Int get() = tensors.filter { it.init == "stored" }.sumOf { it.size }

    /**
     * The adapter at version 0: a function of the seed and of the bundle's [stored] values. One stream runs through the
     * `kaiming_uniform` tensors in order; an entry is (2u - 1) / sqrt(fan_in), each operation in float32.
     */
    fun start(seed: Long, stored: FloatArray = FloatArray(0)): FloatArray {
        if (stored.size != storedSize) {
            throw LayoutException("the start file has ${stored.size} entries, the layout stores $storedSize")
        }
        val out = FloatArray(size)
        var drawn = 0L
        var taken = 0
        tensors.zip(offsets.toList()).forEach { (tensor, offset) ->
            when (tensor.init) {
                "kaiming_uniform" -> {
                    val bound = (1.0 / sqrt(tensor.size.toDouble() / tensor.shape[0])).toFloat()
                    for (i in 0 until tensor.size) out[offset + i] = (Prng.uniform(seed, drawn++) * 2f - 1f) * bound
                }
                "stored" -> {
                    stored.copyInto(out, offset, taken, taken + tensor.size)
                    taken += tensor.size
                }
            }
        }
        return out
    }

    companion object {
        /** A layout as the manifest holds it. */
        fun fromJson(json: Any?): Layout {
            val items = json as? List<*> ?: throw LayoutException("a layout must be a JSON list of tensors")
            return Layout(items.mapIndexed { i, item -> tensor(item, i) })
        }

        private fun tensor(json: Any?, number: Int): Tensor {
            val fields = json as? Map<*, *> ?: throw LayoutException("tensor $number of the layout is not an object")
            val shape = (fields["shape"] as? List<*>)?.map { (it as? Long)?.takeIf { d -> d in 1..Int.MAX_VALUE }?.toInt() }
            if (shape == null || null in shape || (fields.keys - FIELDS).isNotEmpty()) {
                throw LayoutException("tensor $number of the layout has a wrong shape or an unknown field")
            }
            val text = { name: String -> fields[name] as? String ?: throw LayoutException("tensor $number lacks '$name'") }
            return Tensor(
                text("name"), shape.filterNotNull(), text("kind"), text("init"), fields["module"] as? String ?: "",
                ((fields["rank"] ?: 0L) as? Long)?.takeIf { it in 0..Int.MAX_VALUE }?.toInt() ?: -1,
                ((fields["scale"] ?: 1.0) as? Number)?.toDouble() ?: Double.NaN,
            )
        }

        private val FIELDS = setOf("name", "shape", "kind", "init", "module", "rank", "scale")
    }
}

/** A JSON string in ASCII, as Python's json.dumps writes it. */
private fun quoted(text: String): String = text.map { c ->
    when {
        c == '"' || c == '\\' -> "\\$c"
        c == '\n' -> "\\n"
        c == '\r' -> "\\r"
        c == '\t' -> "\\t"
        c == '\b' -> "\\b"
        c == '\u000c' -> "\\f"
        c in ' '..'~' -> c.toString()
        else -> "\\u%04x".format(Locale.ROOT, c.code)
    }
}.joinToString("", "\"", "\"")

/** A float64 as Python's repr: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16. */
internal fun pythonReal(x: Double): String {
    if (x == 0.0) return if (1 / x < 0) "-0.0" else "0.0"
    val digits = (1..17).firstNotNullOf { BigDecimal(x).round(MathContext(it)).takeIf { d -> d.toDouble() == x } }
        .stripTrailingZeros()
    val exponent = digits.precision() - digits.scale() - 1
    if (exponent in -4..15) return digits.toPlainString().let { if ('.' in it) it else "$it.0" }
    val mantissa = digits.unscaledValue().abs().toString()
    val fraction = if (mantissa.length > 1) "." + mantissa.drop(1) else ""
    val sign = if (exponent < 0) "-" else "+"
    return "${if (x < 0) "-" else ""}${mantissa[0]}${fraction}e$sign%02d".format(Locale.ROOT, kotlin.math.abs(exponent))
}
