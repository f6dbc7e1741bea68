package covey.core.train

import covey.core.BundleException
import covey.core.model.TokenizerSpec
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.Charset
import java.nio.charset.CodingErrorAction

/** Text to the token ids of one document, with the start and end marks that the model knows. */
fun interface Coder {
    fun document(text: String): IntArray
}

/**
 * The coder that a manifest describes. Byte-level models need no library. For another tokenizer an app brings its own
 * [Coder]; [covey.core.BundleException] says so.
 */
fun coderOf(spec: TokenizerSpec): Coder {
    if (spec.kind != "bytes") {
        throw BundleException(
            "the model has a tokenizer of its own (${spec.kind}), and this app reads bytes only: serve a bundle of a " +
                "byte-level model, or give the app a Coder for that tokenizer",
        )
    }
    return Coder { text ->
        val bytes = text.toByteArray()
        val marks = { id: Int -> if (id >= 0) intArrayOf(id) else IntArray(0) }
        marks(spec.bosId) + IntArray(bytes.size) { (bytes[it].toInt() and 0xff) + spec.offset } + marks(spec.eosId)
    }
}

/** Text in UTF-8, or in UTF-16 with a byte-order mark; null for anything else, binary files above all. */
fun decodeText(data: ByteArray): String? {
    val wide = data.size >= 2 && (data[0].toInt() and 0xff) + (data[1].toInt() and 0xff) == 0x1fd &&
        (data[0] == 0xff.toByte() || data[0] == 0xfe.toByte())
    if (!wide && data.take(8192).any { it == 0.toByte() }) return null
    val charset: Charset = if (wide) Charsets.UTF_16 else Charsets.UTF_8
    val decoder = charset.newDecoder().onMalformedInput(CodingErrorAction.REPORT).onUnmappableCharacter(CodingErrorAction.REPORT)
    return try {
        decoder.decode(ByteBuffer.wrap(data)).toString().removePrefix("\uFEFF")
    } catch (_: CharacterCodingException) {
        null
    }
}
