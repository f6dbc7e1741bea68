package covey.core

import covey.core.model.Division
import covey.core.model.Layout
import covey.core.model.Tensor
import covey.core.model.at
import covey.core.model.glob
import covey.core.wire.Sharing
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertThrows
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** What travels of an adapter, and what stays. */
class DivisionTest {
    private val a = Tensor("h.0.lora_A.weight", listOf(2, 3), "lora_A", "kaiming_uniform", rank = 2)
    private val b = Tensor("h.0.lora_B.weight", listOf(2, 2), "lora_B", "zeros", rank = 2)
    private val head = Tensor("head", listOf(2), "head", "zeros")
    private val layout = Layout(listOf(a, b, head))
    private val start = FloatArray(12) { 100f + it }

    private fun names(layout: Layout) = layout.tensors.map { it.name }

    @Test
    fun `by default everything travels`() {
        val plain = Division(layout, null, Sharing())
        assertEquals(layout.digest, plain.published.digest)
        assertEquals(layout.digest, plain.uploaded(5).digest)
        assertSameBits(start, plain.start(start))
    }

    @Test
    fun `personal tensors are trained and not sent, fixed ones neither`() {
        val division = Division(layout, null, Sharing(personal = listOf("kind:head"), fixed = listOf("*.lora_A.*")))
        assertEquals(listOf(b.name), names(division.published))
        assertEquals(listOf(b.name, "head"), names(division.trained(1)))
        assertEquals(listOf(b.name), names(division.uploaded(1)))
        val (whole, _) = division.whole(start, FloatArray(4) { 1f }, floatArrayOf(7f, 8f), 0, null)
        assertArrayEquals(start.copyOf(6) + floatArrayOf(1f, 1f, 1f, 1f, 7f, 8f), whole)
        assertArrayEquals(start.copyOf(6) + floatArrayOf(1f, 1f, 1f, 1f, 110f, 111f), division.whole(start, FloatArray(4) { 1f }, FloatArray(0), 0, null).first)
    }

    @Test
    fun `phases take turns`() {
        val division = Division(layout, null, Sharing(phases = listOf(listOf("kind:lora_A"), listOf("kind:lora_B", "head"))))
        assertEquals(listOf(a.name), names(division.uploaded(1)))
        assertEquals(listOf(b.name, "head"), names(division.uploaded(2)))
        assertEquals(listOf(a.name), names(division.uploaded(3)))
    }

    @Test
    fun `fresh tensors start anew and do not come down`() {
        val division = Division(layout, null, Sharing(fresh = listOf("kind:lora_A")))
        assertEquals(listOf(b.name, "head"), names(division.published))
        val anew = FloatArray(12) { 5f }
        val (whole, _) = division.whole(start, FloatArray(6), FloatArray(0), 0, anew)
        assertArrayEquals(FloatArray(6) { 5f } + FloatArray(6), whole)
    }

    @Test
    fun `a lower rank is the first rows and columns`() {
        val division = Division(layout, null, Sharing(ranks = listOf(1)))
        assertEquals(listOf(listOf(1, 3), listOf(2, 1), listOf(2)), division.held.tensors.map { it.shape })
        val where = intArrayOf(0, 1, 2, 6, 8, 10, 11)
        assertArrayEquals(where, layout.positions(division.held))
        assertEquals(division.held.digest, division.published.digest)
        assertArrayEquals(start.at(where), division.start(start))
        val (whole, _) = division.whole(start, start.at(where), FloatArray(0), 0, null)
        assertArrayEquals(floatArrayOf(100f, 101f, 102f, 0f, 0f, 0f, 106f, 0f, 108f, 0f, 110f, 111f), whole)
    }

    @Test
    fun `cohorts have copies, and the second adapter lies behind`() {
        val second = Layout(listOf(Tensor("x", listOf(3), "block", "zeros")))
        val division = Division(layout, second, Sharing(cohort = listOf("head"), cohorts = 2, second = true))
        assertEquals(listOf(a.name, b.name, "cohort0.head", "cohort1.head", "second.x"), names(division.published))
        assertEquals(listOf(a.name, b.name, "second.x", "cohort1.head"), names(division.downloaded(1)))
        assertEquals(listOf(null, 1), division.downloads(1).map { it.second })
        val version = FloatArray(15) { it.toFloat() }
        val (whole, beside) = division.whole(start, version, FloatArray(0), 1, null)
        assertArrayEquals(FloatArray(10) { it.toFloat() } + floatArrayOf(13f, 14f), whole)
        assertArrayEquals(floatArrayOf(10f, 11f, 12f), beside)
        assertArrayEquals(start.copyOf(10) + floatArrayOf(110f, 111f, 110f, 111f, 0f, 0f, 0f), division.start(start))
    }

    @Test
    fun `divisions that make no sense are refused`() {
        for (bad in listOf(Sharing(personal = listOf("*")), Sharing(personal = listOf("head"), fixed = listOf("h*")), Sharing(second = true))) {
            assertThrows(LayoutException::class.java, { Division(layout, null, bad) }, bad.toString())
        }
    }

    @Test
    fun `shell patterns`() {
        for ((pattern, text) in listOf("*" to "", "a*c" to "abbc", "a?c" to "abc", "[a-c]x" to "bx", "[!a]x" to "bx", "*.b.*" to "a.b.c", "a[" to "a[")) {
            assertTrue(glob(pattern, text), pattern)
        }
        for ((pattern, text) in listOf("a" to "ab", "a?" to "a", "[a-c]x" to "dx", "[!a]x" to "ax", "A" to "a", "" to "a")) {
            assertTrue(!glob(pattern, text), pattern)
        }
        assertTrue(!glob("*a".repeat(2000), "a".repeat(1999) + "b"))
    }
}
