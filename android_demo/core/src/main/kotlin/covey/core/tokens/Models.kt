package covey.core.tokens

/** Turns a piece of a text into ids. */
internal fun interface Model {
    fun tokens(piece: String, out: Ints)
}

/** The model that a file describes; refuses one that is not known here. [ids]: what its tokens are called. */
internal fun modelOf(part: Component): Pair<Model, (String) -> Int?> = when (part.textOrNull("type") ?: guessed(part)) {
    "BPE" -> Bpe.of(part).let { it to it::id }
    "WordPiece" -> part.vocabulary("vocab").let { wordPiece(part, it) to it::get }
    "WordLevel" -> part.vocabulary("vocab").let { wordLevel(part, it) to it::get }
    "Unigram" -> Unigram.of(part).let { it to it::id }
    else -> part.unsupported()
}

/** Files of long ago do not say what their model is. */
private fun guessed(part: Component): String = if (part.has("merges")) "BPE" else part.damaged("type")

private fun unknown(part: Component, vocabulary: Map<String, Int>): Int =
    vocabulary[part.text("unk_token")] ?: part.unsupported("${part.type} without its own unknown token in the vocabulary")

private fun wordLevel(part: Component, vocabulary: Map<String, Int>): Model {
    val unknown = unknown(part, vocabulary)
    return Model { piece, out -> out.add(vocabulary[piece] ?: unknown) }
}

/** Longest match first, and a word that cannot be made of tokens is unknown as a whole (Schuster and Nakajima 2012). */
private fun wordPiece(part: Component, vocabulary: Map<String, Int>): Model {
    val unknown = unknown(part, vocabulary)
    val prefix = part.textOrNull("continuing_subword_prefix") ?: "##"
    val longest = part.wholeOrNull("max_input_chars_per_word") ?: 100
    return Model { word, out ->
        val found = if (word.codePointCount(0, word.length) > longest) null else pieces(word, prefix, vocabulary)
        if (found == null) out.add(unknown) else out.addAll(found)
    }
}

private fun pieces(word: String, prefix: String, vocabulary: Map<String, Int>): IntArray? {
    val out = Ints()
    var from = 0
    while (from < word.length) {
        val start = if (from > 0) prefix else ""
        var to = word.length
        while (to > from && start + word.substring(from, to) !in vocabulary) to -= Character.charCount(word.codePointBefore(to))
        if (to == from) return null
        out.add(vocabulary.getValue(start + word.substring(from, to)))
        from = to
    }
    return out.toArray()
}

/** `<0x0A>` and so on, the ids of a text's bytes; null where the vocabulary lacks one. */
internal fun byteTokens(text: String, ids: (String) -> Int?): IntArray? {
    val bytes = text.toByteArray()
    val found = IntArray(bytes.size)
    for (i in bytes.indices) found[i] = ids("<0x%02X>".format(bytes[i].toInt() and 0xff)) ?: return null
    return found
}
