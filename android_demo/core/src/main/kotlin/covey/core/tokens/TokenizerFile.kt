package covey.core.tokens

import covey.core.BundleException
import covey.core.model.Json
import covey.core.model.TokenizerSpec

/**
 * A model's own tokenizer, read from Hugging Face's `tokenizer.json`: added tokens, normalizer, pre-tokenizer, model and
 * post-processor as the file describes them. It gives the ids that Python's `tokenizers` gives; a component that is not
 * known here is refused by name when the file is read.
 */
internal class TokenizerFile private constructor(
    private val raw: AddedTokens,
    private val normalizer: Normalizer,
    private val normalized: AddedTokens,
    private val preTokenizer: PreTokenizer,
    private val model: Model,
    private val frame: Frame,
    private val spec: TokenizerSpec,
) : Coder {
    override fun document(text: String): IntArray = framed(checked(ids(text)), spec)

    override fun row(text: String, limit: Int): IntArray {
        val ids = ids(text)
        return checked(frame.around(ids.copyOf(minOf(ids.size, maxOf(0, limit - frame.size)))).let { it.copyOf(minOf(it.size, limit)) })
    }

    private fun ids(text: String): IntArray {
        val out = Ints()
        for (segment in raw.split(text, true)) {
            if (segment.id >= 0) out.add(segment.id) else normal(segment, out)
        }
        return out.toArray()
    }

    private fun normal(segment: Segment, out: Ints) {
        for (part in normalized.split(normalizer(segment.text), segment.first)) {
            if (part.id >= 0) out.add(part.id)
            if (part.text.isEmpty()) continue
            for (piece in preTokenizer(Piece(part.text, part.first))) {
                if (piece.text.isNotEmpty()) model.tokens(piece.text, out)
            }
        }
    }

    private fun checked(ids: IntArray): IntArray {
        val largest = ids.maxOrNull() ?: 0
        if (largest >= spec.vocabSize) {
            throw BundleException("the tokenizer gives the id $largest, the model knows ${spec.vocabSize}: export the bundle again")
        }
        return ids
    }

    companion object {
        /** No tokenizer is longer. */
        const val MAX_BYTES = 64L shl 20

        /** The tokenizer in a file's text. */
        fun parse(json: String, spec: TokenizerSpec): TokenizerFile {
            val file = Component("file", Json.parse(json) as? Map<*, *> ?: throw BundleException("the model's tokenizer is not a JSON object"))
            fun <T : Any> part(name: String, make: (Component) -> T): T? =
                if (file.has(name)) make(Component(name.replace('_', '-'), file.map(name))) else null
            val normalizer = part("normalizer", ::normalizerOf) ?: { it }
            val (model, id) = part("model", ::modelOf) ?: file.damaged("model")
            val added = if (file.has("added_tokens")) file.components("added_tokens").map { added(it, id) } else emptyList()
            val (changed, plain) = added.partition { it.normalized }
            return TokenizerFile(
                AddedTokens(plain), normalizer, AddedTokens(changed.map { it.copy(content = normalizer(it.content)) }),
                part("pre_tokenizer", ::preTokenizerOf) ?: { listOf(it) }, model, part("post_processor", Frame::of) ?: Frame.NONE, spec,
            )
        }

        private fun added(part: Component, id: (String) -> Int?): AddedToken {
            val content = part.text("content")
            val flag = { name: String -> part.flag(name, false) }
            return AddedToken(id(content) ?: part.whole("id"), content, flag("single_word"), flag("lstrip"), flag("rstrip"), flag("normalized"))
        }
    }
}
