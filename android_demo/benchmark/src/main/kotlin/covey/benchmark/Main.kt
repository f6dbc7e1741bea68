package covey.benchmark

import covey.core.codec.codecFromSpec
import covey.core.codec.topk
import covey.core.model.Layout
import covey.core.model.Tensor
import covey.core.model.floatsOf
import covey.core.wire.StageSpec
import java.io.File
import java.lang.management.ManagementFactory

/**
 * The codec on a JVM, one operation for each line of standard input, so that benchmarks/android_codec.py can let it take
 * turns with Python's:
 *
 *     load PATH          a vector as little-endian float32
 *     topk DENSITY       -> seconds of CPU time, entries kept
 *     encode SPEC        -> seconds, bytes       SPEC: stage names and arguments, `topk density=0.0625 pack values=auto`
 *     decode SPEC        -> seconds, entries     of what the last `encode` made
 */
fun main() {
    var vector = FloatArray(0)
    var parts: Map<String, ByteArray> = emptyMap()
    for (line in generateSequence(::readLine)) {
        val words = line.split(' ')
        val answer = when (words[0]) {
            "load" -> { vector = floatsOf(File(words[1]).readBytes()); "ok" }
            "topk" -> timed { topk(vector, (vector.size * words[1].toDouble()).toInt()).size }
            "encode" -> codec(words.drop(1), vector.size).let { codec ->
                timed { parts = codec.encode(vector, codec.init(0)).first; parts.values.sumOf { it.size } }
            }
            "decode" -> codec(words.drop(1), vector.size).let { codec -> timed { codec.decode(parts).count } }
            else -> error("unknown: $line")
        }
        println(answer)
        System.out.flush()
    }
}

private val threads = ManagementFactory.getThreadMXBean()

private inline fun timed(work: () -> Int): String {
    val before = threads.currentThreadCpuTime
    val result = work()
    return "${(threads.currentThreadCpuTime - before) * 1e-9} $result"
}

private fun codec(words: List<String>, n: Int) = codecFromSpec(spec(words), layoutOf(n))

private fun spec(words: List<String>): List<StageSpec> {
    val stages = ArrayList<Pair<String, MutableMap<String, Any>>>()
    for (word in words) {
        if ('=' !in word) stages += word to HashMap() else stages.last().second[word.substringBefore('=')] = argument(word.substringAfter('='))
    }
    return stages.map { StageSpec(it.first, it.second) }
}

private fun argument(text: String): Any = text.toLongOrNull() ?: text.toDoubleOrNull() ?: text

/** One tensor: the codec's time does not depend on the layout where no stage looks at tensors. */
private fun layoutOf(n: Int) = Layout(listOf(Tensor("t", listOf(n), "block", "zeros")))
