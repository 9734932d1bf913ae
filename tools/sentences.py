"""Spanish sentences from a small grammar of several hundred words, for tasks harder than the quickstart's.

"Por la tarde la vecina amable compró un reloj elegante en el mercado": no sentence is drawn twice. Adjectives are those
that agree with either gender as they are.
"""

from __future__ import annotations

import random

PEOPLE = """el abuelo|la abuela|el médico|la médica|el alumno|la alumna|el vecino|la vecina|el panadero|la panadera
el pintor|la pintora|el cartero|la cartera|el ingeniero|la ingeniera|el músico|la cantante|el capitán|la reina|el rey
el turista|la periodista|el juez|la jueza|el campesino|la campesina|el pescador|la profesora|el profesor|la directora
el cocinero|la cocinera|el bombero|la enfermera|el piloto|la actriz|el actor|la escritora|el poeta|la niña|el niño
mi hermano|mi hermana|su primo|su prima|nuestra tía|nuestro tío|aquel soldado|aquella joven|este señor|esta señora"""
VERBS = """compró|vendió|encontró|perdió|pintó|rompió|limpió|abrió|cerró|dibujó|describió|escondió|mostró|llevó|trajo
olvidó|buscó|eligió|guardó|recibió|regaló|arregló|construyó|cambió|tocó|miró|fotografió|lavó|prestó|devolvió|midió
pesó|cargó|robó|defendió|estudió|inventó|copió|empujó|levantó"""
OBJECTS = """un reloj|una guitarra|un espejo|una lámpara|un cuaderno|una silla|un tren|una bicicleta|un zapato
una camisa|un anillo|una manta|un piano|una botella|un cuchillo|una cuchara|un plato|una taza|un libro|una carta
un mapa|una moneda|un billete|una puerta|un armario|una mesa|un sombrero|una falda|un abrigo|una bufanda|un paraguas
una maleta|un teléfono|una cámara|un ordenador|una radio|un barco|una escalera|un martillo|una cuerda|un globo
una pelota|un juguete|una muñeca|un jarrón|una fruta|un queso|una tortilla|un pastel|una naranja|un limón|una cebolla"""
ADJECTIVES = """grande|verde|azul|gris|elegante|brillante|inútil|frágil|enorme|importante|interesante|simple|doble
popular|especial|original|excelente|diferente|agradable|caliente|suave|dulce|triste|alegre|feliz|valiente|inteligente
amable|fuerte|débil|pobre|humilde|terrible|increíble|formidable|natural|tradicional|visible"""
PLACES = """en el mercado|en la plaza|en la cocina|en el jardín|en la escuela|en el hospital|en la biblioteca
en el museo|en la estación|en el aeropuerto|en la playa|en el bosque|en la montaña|en el puente|en la iglesia
en el teatro|en la oficina|en el hotel|en la granja|en el sótano|en la terraza|en el barrio|en la ciudad|en el pueblo
en la isla|en el puerto|en la frontera|en el castillo|en la fábrica|en el parque|en la calle|en el río|en la tienda
cerca del lago|cerca de la torre|detrás del muro|detrás de la casa|delante del banco|junto a la fuente|junto al faro"""
TIMES = """ayer|hoy|anoche|el lunes|el martes|el miércoles|el jueves|el viernes|el sábado|el domingo|en enero|en febrero
en marzo|en abril|en mayo|en junio|en julio|en agosto|en septiembre|en octubre|en noviembre|en diciembre|por la mañana
por la tarde|por la noche|al mediodía|de madrugada|hace una semana|hace un año|durante la fiesta|antes de comer
después de cenar|con mucho cuidado|sin ninguna prisa|por primera vez|muy despacio"""


def _words(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def draw_sentences(num_sentences: int, seed: int) -> list[str]:
    """Draw sentences of 9 to 16 words, all different."""
    generator = random.Random(seed)
    parts = [_words(part) for part in (TIMES, PEOPLE, ADJECTIVES, VERBS, OBJECTS, ADJECTIVES, PLACES)]
    sentences: dict[str, None] = {}
    while len(sentences) < num_sentences:
        sentences[" ".join(generator.choice(part) for part in parts)] = None
    return list(sentences)


def vocabulary() -> list[str]:
    """Return every word of the grammar, sorted."""
    parts = (TIMES, PEOPLE, ADJECTIVES, VERBS, OBJECTS, PLACES)
    return sorted({word for part in parts for phrase in _words(part) for word in phrase.split()})
