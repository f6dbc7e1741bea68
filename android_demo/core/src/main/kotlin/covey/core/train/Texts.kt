package covey.core.train

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.Charset
import java.nio.charset.CodingErrorAction

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
