from adrf import generics, serializers, views
from articles.models import Article
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle


class ArticleSerializer(serializers.ModelSerializer):
    class Meta:
        model = Article
        fields = ["id", "title", "body", "price", "published"]


class Articles(generics.ListAPIView):
    queryset = Article.objects.order_by("id")
    serializer_class = ArticleSerializer


class Limited(views.APIView):
    throttle_classes = [AnonRateThrottle]

    async def get(self, request):
        return Response({"visits": await request.session.aget("visits")})
